// A control plane that says exactly what it is told to: resources of any type come in over HTTP, and every request that a
// proxy sends is a line of JSON on standard output. It is ADS and the services of single types, delta and state of the world.
// Virtual hosts are found by their aliases, too, and answered with an empty resource where there is none, as VHDS asks.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"

	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/on_demand/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/service/endpoint/v3"
	extension "github.com/envoyproxy/go-control-plane/envoy/service/extension/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/service/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/service/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
)

const virtualHosts = "type.googleapis.com/envoy.config.route.v3.VirtualHost"

// One resource as it is told; `Lazy`: not among those that come to whoever asks for everything.
type told struct {
	Name     string          `json:"name"`
	Aliases  []string        `json:"aliases"`
	Lazy     bool            `json:"lazy"`
	Version  string          `json:"version"`
	Resource json.RawMessage `json:"resource"`
	body     *anypb.Any
}

// All resources, by type; streams wait for changes.
type store struct {
	sync.Mutex
	version string
	types   map[string][]told
	streams map[chan struct{}]bool
}

// What a proxy said.
type said struct {
	Delta       bool              `json:"delta"`
	Type        string            `json:"type"`
	Version     string            `json:"version"`
	Nonce       string            `json:"nonce"`
	Names       []string          `json:"names"`
	Unsubscribe []string          `json:"unsubscribe,omitempty"`
	Initial     map[string]string `json:"initial,omitempty"`
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

func (s *store) set(w http.ResponseWriter, r *http.Request) {
	var wanted struct {
		Version string            `json:"version"`
		Types   map[string][]told `json:"types"`
	}
	if err := json.NewDecoder(r.Body).Decode(&wanted); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, resources := range wanted.Types {
		for at := range resources {
			one := &resources[at]
			one.body = &anypb.Any{}
			if err := protojson.Unmarshal(one.Resource, one.body); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			if one.Version == "" {
				one.Version = wanted.Version
			}
		}
	}
	s.Lock()
	defer s.Unlock()
	s.version = wanted.Version
	for kind, resources := range wanted.Types {
		s.types[kind] = resources
	}
	for stream := range s.streams {
		select {
		case stream <- struct{}{}:
		default:
		}
	}
}

func (s *store) listen() chan struct{} {
	s.Lock()
	defer s.Unlock()
	changed := make(chan struct{}, 1)
	s.streams[changed] = true
	return changed
}

func (s *store) leave(changed chan struct{}) {
	s.Lock()
	defer s.Unlock()
	delete(s.streams, changed)
}

// Of one type on one stream.
type state struct {
	kind     string
	wildcard bool
	names    map[string]bool
	fresh    map[string]bool
	known    map[string]string
	version  string
	sent     map[string]bool
	nonce    int
}

func newState(kind string) *state {
	return &state{kind: kind, names: map[string]bool{}, fresh: map[string]bool{}, known: map[string]string{}}
}

func namespace(name string) string {
	if at := strings.LastIndex(name, "/"); at >= 0 {
		return name[:at]
	}
	return ""
}

// What a resource of an xdstp name is asked for with.
func collection(name string) string {
	path, parameters, _ := strings.Cut(name, "?")
	at := strings.LastIndex(path, "/")
	if !strings.HasPrefix(path, "xdstp://") || at < 0 {
		return name
	}
	return path[:at] + "/*?" + parameters
}

// Whether the proxy asked for this resource.
func (t *state) wants(one told) bool {
	everything := t.wildcard || t.names["*"]
	if t.names[one.Name] || t.names[collection(one.Name)] || everything && t.kind != virtualHosts {
		return true
	}
	if t.kind != virtualHosts {
		return false
	}
	for _, alias := range one.Aliases {
		if t.names[alias] {
			return true
		}
	}
	return !one.Lazy && (everything || t.names[namespace(one.Name)])
}

func (t *state) found(resources []told, name string) bool {
	for _, one := range resources {
		if one.Name == name || t.kind == virtualHosts && !strings.Contains(name, "/") {
			return true
		}
		for _, alias := range one.Aliases {
			if alias == name {
				return true
			}
		}
	}
	return false
}

// What is to be said now; nil where there is nothing.
func (t *state) delta(s *store) *discovery.DeltaDiscoveryResponse {
	s.Lock()
	defer s.Unlock()
	resources := s.types[t.kind]
	response := &discovery.DeltaDiscoveryResponse{SystemVersionInfo: s.version, TypeUrl: t.kind}
	there := map[string]bool{}
	for _, one := range resources {
		there[one.Name] = true
		again := t.fresh[one.Name]
		for _, alias := range one.Aliases {
			again = again || t.fresh[alias]
		}
		if !t.wants(one) || t.known[one.Name] == one.Version && !again {
			continue
		}
		t.known[one.Name] = one.Version
		response.Resources = append(response.Resources, &discovery.Resource{
			Name: one.Name, Version: one.Version, Aliases: one.Aliases, Resource: one.body})
	}
	for name := range t.known {
		if !there[name] && !t.fresh[name] {
			delete(t.known, name)
			response.RemovedResources = append(response.RemovedResources, name)
		}
	}
	for name := range t.fresh {
		switch {
		case name == "*" || strings.Contains(name, "/*") || t.found(resources, name):
		case t.kind == virtualHosts && strings.Contains(name, "/"):
			response.Resources = append(response.Resources, &discovery.Resource{Name: name, Aliases: []string{name}, Version: "0"})
		case t.kind != virtualHosts:
			response.RemovedResources = append(response.RemovedResources, name)
		}
	}
	t.fresh = map[string]bool{}
	if len(response.Resources)+len(response.RemovedResources) == 0 {
		return nil
	}
	sort.Strings(response.RemovedResources)
	t.nonce++
	response.Nonce = strconv.Itoa(t.nonce)
	return response
}

func (t *state) whole(s *store) *discovery.DiscoveryResponse {
	s.Lock()
	defer s.Unlock()
	sent := t.version == s.version
	for name := range t.names {
		sent = sent && t.sent[name]
	}
	if sent || !t.wildcard && len(t.names) == 0 {
		return nil
	}
	t.version, t.sent = s.version, map[string]bool{}
	for name := range t.names {
		t.sent[name] = true
	}
	response := &discovery.DiscoveryResponse{VersionInfo: s.version, TypeUrl: t.kind}
	for _, one := range s.types[t.kind] {
		if t.wants(one) {
			response.Resources = append(response.Resources, one.body)
		}
	}
	t.nonce++
	response.Nonce = strconv.Itoa(t.nonce)
	return response
}

type server struct {
	store *store
}

// What a proxy sends on one stream, until it ends.
type receiver[T any] interface {
	Recv() (*T, error)
	Context() context.Context
}

func receive[T any](stream receiver[T]) <-chan *T {
	requests := make(chan *T)
	go func() {
		defer close(requests)
		for {
			request, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case requests <- request:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	return requests
}

type deltaStream interface {
	receiver[discovery.DeltaDiscoveryRequest]
	Send(*discovery.DeltaDiscoveryResponse) error
}

func (s *server) delta(stream deltaStream) error {
	changed := s.store.listen()
	defer s.store.leave(changed)
	requests := receive(stream)
	states, order := map[string]*state{}, []*state{}
	for {
		due := order
		select {
		case <-changed:
		case request, open := <-requests:
			if !open {
				return nil
			}
			names := append([]string{}, request.ResourceNamesSubscribe...)
			sort.Strings(names)
			say(said{true, request.TypeUrl, "", request.ResponseNonce, names, request.ResourceNamesUnsubscribe,
				request.InitialResourceVersions, request.GetErrorDetail().GetCode(), request.GetErrorDetail().GetMessage()})
			t := states[request.TypeUrl]
			if t == nil {
				t = newState(request.TypeUrl)
				states[request.TypeUrl], order = t, append(order, t)
				t.wildcard = len(names) == 0
				for name, version := range request.InitialResourceVersions {
					t.known[name] = version
				}
			}
			for _, name := range names {
				t.names[name], t.fresh[name] = true, true
			}
			for _, name := range request.ResourceNamesUnsubscribe {
				delete(t.names, name)
				delete(t.known, name)
			}
			due = []*state{t}
		}
		for _, t := range due {
			if response := t.delta(s.store); response != nil {
				if err := stream.Send(response); err != nil {
					return err
				}
			}
		}
	}
}

type wholeStream interface {
	receiver[discovery.DiscoveryRequest]
	Send(*discovery.DiscoveryResponse) error
}

func (s *server) whole(stream wholeStream) error {
	changed := s.store.listen()
	defer s.store.leave(changed)
	requests := receive(stream)
	states, order := map[string]*state{}, []*state{}
	for {
		due := order
		select {
		case <-changed:
		case request, open := <-requests:
			if !open {
				return nil
			}
			names := append([]string{}, request.ResourceNames...)
			sort.Strings(names)
			say(said{false, request.TypeUrl, request.VersionInfo, request.ResponseNonce, names, nil, nil,
				request.GetErrorDetail().GetCode(), request.GetErrorDetail().GetMessage()})
			t := states[request.TypeUrl]
			if t == nil {
				t = newState(request.TypeUrl)
				states[request.TypeUrl], order = t, append(order, t)
				t.wildcard = len(names) == 0
			}
			if request.ResponseNonce != "" && request.ResponseNonce != strconv.Itoa(t.nonce) {
				continue
			}
			t.names = map[string]bool{}
			for _, name := range names {
				t.names[name] = true
			}
			for name := range t.sent {
				if !t.names[name] {
					delete(t.sent, name)
				}
			}
			due = []*state{t}
		}
		for _, t := range due {
			if response := t.whole(s.store); response != nil {
				if err := stream.Send(response); err != nil {
					return err
				}
			}
		}
	}
}

// The services, each of which tells all types.

type ads struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	*server
}

func (s ads) StreamAggregatedResources(stream discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.whole(stream)
}
func (s ads) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.delta(stream)
}

type cds struct {
	cluster.UnimplementedClusterDiscoveryServiceServer
	*server
}

func (s cds) StreamClusters(stream cluster.ClusterDiscoveryService_StreamClustersServer) error {
	return s.whole(stream)
}
func (s cds) DeltaClusters(stream cluster.ClusterDiscoveryService_DeltaClustersServer) error {
	return s.delta(stream)
}

type eds struct {
	endpoint.UnimplementedEndpointDiscoveryServiceServer
	*server
}

func (s eds) StreamEndpoints(stream endpoint.EndpointDiscoveryService_StreamEndpointsServer) error {
	return s.whole(stream)
}
func (s eds) DeltaEndpoints(stream endpoint.EndpointDiscoveryService_DeltaEndpointsServer) error {
	return s.delta(stream)
}

type lds struct {
	listener.UnimplementedListenerDiscoveryServiceServer
	*server
}

func (s lds) StreamListeners(stream listener.ListenerDiscoveryService_StreamListenersServer) error {
	return s.whole(stream)
}
func (s lds) DeltaListeners(stream listener.ListenerDiscoveryService_DeltaListenersServer) error {
	return s.delta(stream)
}

type rds struct {
	route.UnimplementedRouteDiscoveryServiceServer
	*server
}

func (s rds) StreamRoutes(stream route.RouteDiscoveryService_StreamRoutesServer) error {
	return s.whole(stream)
}
func (s rds) DeltaRoutes(stream route.RouteDiscoveryService_DeltaRoutesServer) error {
	return s.delta(stream)
}

type srds struct {
	route.UnimplementedScopedRoutesDiscoveryServiceServer
	*server
}

func (s srds) StreamScopedRoutes(stream route.ScopedRoutesDiscoveryService_StreamScopedRoutesServer) error {
	return s.whole(stream)
}
func (s srds) DeltaScopedRoutes(stream route.ScopedRoutesDiscoveryService_DeltaScopedRoutesServer) error {
	return s.delta(stream)
}

type ecds struct {
	extension.UnimplementedExtensionConfigDiscoveryServiceServer
	*server
}

func (s ecds) StreamExtensionConfigs(stream extension.ExtensionConfigDiscoveryService_StreamExtensionConfigsServer) error {
	return s.whole(stream)
}
func (s ecds) DeltaExtensionConfigs(stream extension.ExtensionConfigDiscoveryService_DeltaExtensionConfigsServer) error {
	return s.delta(stream)
}

type vhds struct {
	route.UnimplementedVirtualHostDiscoveryServiceServer
	*server
}

func (s vhds) DeltaVirtualHosts(stream route.VirtualHostDiscoveryService_DeltaVirtualHostsServer) error {
	return s.delta(stream)
}

func register(xds *grpc.Server, s *server) {
	discovery.RegisterAggregatedDiscoveryServiceServer(xds, ads{server: s})
	cluster.RegisterClusterDiscoveryServiceServer(xds, cds{server: s})
	endpoint.RegisterEndpointDiscoveryServiceServer(xds, eds{server: s})
	listener.RegisterListenerDiscoveryServiceServer(xds, lds{server: s})
	route.RegisterRouteDiscoveryServiceServer(xds, rds{server: s})
	route.RegisterScopedRoutesDiscoveryServiceServer(xds, srds{server: s})
	extension.RegisterExtensionConfigDiscoveryServiceServer(xds, ecds{server: s})
	route.RegisterVirtualHostDiscoveryServiceServer(xds, vhds{server: s})
}

func main() {
	address := flag.String("listen", "127.0.0.1:0", "where proxies connect")
	control := flag.String("control", "127.0.0.1:0", "where resources are put")
	flag.Parse()
	resources := &store{types: map[string][]told{}, streams: map[chan struct{}]bool{}}
	xds := grpc.NewServer()
	register(xds, &server{store: resources})
	socket, err := net.Listen("tcp", *address)
	if err != nil {
		log.Fatal(err)
	}
	admin, err := net.Listen("tcp", *control)
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/snapshot", resources.set)
	go func() { log.Fatal(http.Serve(admin, nil)) }()
	fmt.Printf("{\"xds\":%q,\"control\":%q}\n", socket.Addr(), admin.Addr())
	log.Fatal(xds.Serve(socket))
}
