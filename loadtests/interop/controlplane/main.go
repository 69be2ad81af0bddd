// A control plane made of go-control-plane's own server and cache, for the interop runs: snapshots come in over HTTP, and
// every request that a proxy sends is a line of JSON on standard output. It is ADS, delta and state of the world at once.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sort"
	"sync"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// One node's resources, as protobuf's JSON.
type snapshot struct {
	Version   string            `json:"version"`
	Clusters  []json.RawMessage `json:"clusters"`
	Endpoints []json.RawMessage `json:"endpoints"`
	Listeners []json.RawMessage `json:"listeners"`
	Routes    []json.RawMessage `json:"routes"`
}

// What a proxy said.
type said struct {
	Stream      int64             `json:"stream"`
	Delta       bool              `json:"delta"`
	Type        string            `json:"type"`
	Version     string            `json:"version"`
	Nonce       string            `json:"nonce"`
	Names       []string          `json:"names"`
	Unsubscribe []string          `json:"unsubscribe,omitempty"`
	Initial     map[string]string `json:"initial,omitempty"`
	Node        bool              `json:"node"`
	Code        int32             `json:"code"`
	Error       string            `json:"error,omitempty"`
}

var output sync.Mutex

func say(what any) {
	output.Lock()
	defer output.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(what); err != nil {
		log.Fatal(err)
	}
}

func callbacks() server.Callbacks {
	return server.CallbackFuncs{
		StreamRequestFunc: func(id int64, r *discovery.DiscoveryRequest) error {
			names := append([]string{}, r.ResourceNames...)
			sort.Strings(names)
			say(said{id, false, r.TypeUrl, r.VersionInfo, r.ResponseNonce, names, nil, nil, r.Node != nil,
				r.GetErrorDetail().GetCode(), r.GetErrorDetail().GetMessage()})
			return nil
		},
		StreamDeltaRequestFunc: func(id int64, r *discovery.DeltaDiscoveryRequest) error {
			names := append([]string{}, r.ResourceNamesSubscribe...)
			sort.Strings(names)
			say(said{id, true, r.TypeUrl, "", r.ResponseNonce, names, r.ResourceNamesUnsubscribe,
				r.InitialResourceVersions, r.Node != nil, r.GetErrorDetail().GetCode(), r.GetErrorDetail().GetMessage()})
			return nil
		},
	}
}

func parse[M proto.Message](raw []json.RawMessage, empty func() M) ([]types.Resource, error) {
	var all []types.Resource
	for _, text := range raw {
		message := empty()
		if err := protojson.Unmarshal(text, message); err != nil {
			return nil, err
		}
		all = append(all, message)
	}
	return all, nil
}

func (s snapshot) build() (*cache.Snapshot, error) {
	clusters, err := parse(s.Clusters, func() *cluster.Cluster { return &cluster.Cluster{} })
	if err != nil {
		return nil, err
	}
	endpoints, err := parse(s.Endpoints, func() *endpoint.ClusterLoadAssignment { return &endpoint.ClusterLoadAssignment{} })
	if err != nil {
		return nil, err
	}
	listeners, err := parse(s.Listeners, func() *listener.Listener { return &listener.Listener{} })
	if err != nil {
		return nil, err
	}
	routes, err := parse(s.Routes, func() *route.RouteConfiguration { return &route.RouteConfiguration{} })
	if err != nil {
		return nil, err
	}
	return cache.NewSnapshot(s.Version, map[resource.Type][]types.Resource{
		resource.ClusterType:  clusters,
		resource.EndpointType: endpoints,
		resource.ListenerType: listeners,
		resource.RouteType:    routes,
	})
}

type anyNode struct{}

func (anyNode) ID(*core.Node) string { return "node" }

func main() {
	address := flag.String("listen", "127.0.0.1:0", "where proxies connect")
	control := flag.String("control", "127.0.0.1:0", "where snapshots are put")
	flag.Parse()
	snapshots := cache.NewSnapshotCache(true, anyNode{}, nil)
	xds := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(xds, server.NewServer(context.Background(), snapshots, callbacks()))
	socket, err := net.Listen("tcp", *address)
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/snapshot", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var wanted snapshot
		if err == nil {
			err = json.Unmarshal(body, &wanted)
		}
		var built *cache.Snapshot
		if err == nil {
			built, err = wanted.build()
		}
		if err == nil {
			err = snapshots.SetSnapshot(r.Context(), "node", built)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	admin, err := net.Listen("tcp", *control)
	if err != nil {
		log.Fatal(err)
	}
	go func() { log.Fatal(http.Serve(admin, nil)) }()
	fmt.Printf("{\"xds\":%q,\"control\":%q}\n", socket.Addr(), admin.Addr())
	log.Fatal(xds.Serve(socket))
}
