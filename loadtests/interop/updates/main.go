// What updates cost a proxy that holds much: this program is its control plane (delta ADS, nothing kept but what it sends),
// starts it, fills it, changes one thing at a time, and prints how long each change took from being sent to being accepted
// and, where it shows, to being served. One line of JSON.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	router "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	manager "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	percent "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const prefix = "type.googleapis.com/envoy.config."
const (
	clusterType  = prefix + "cluster.v3.Cluster"
	endpointType = prefix + "endpoint.v3.ClusterLoadAssignment"
	listenerType = prefix + "listener.v3.Listener"
	routeType    = prefix + "route.v3.RouteConfiguration"
)

func packed(message proto.Message) *anypb.Any {
	result, err := anypb.New(message)
	if err != nil {
		log.Fatal(err)
	}
	return result
}

func address(port int) *core.Address {
	return &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
		Address: "127.0.0.1", PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(port)}}}}
}

var ads = &core.ConfigSource{ResourceApiVersion: core.ApiVersion_V3,
	ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}}}

// The server: resources by type and name, and the stream of the one proxy.
type server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	lock      sync.Mutex
	resources map[string]map[string]*discovery.Resource
	wanted    map[string]map[string]bool
	stream    discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	nonce     int
	waiting   map[string]chan string
	// How many the storm sent.
	updates int
}

func (s *server) StreamAggregatedResources(discovery.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return fmt.Errorf("delta only")
}

func (s *server) DeltaAggregatedResources(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	s.lock.Lock()
	s.stream, s.wanted = stream, map[string]map[string]bool{}
	s.lock.Unlock()
	for {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		s.lock.Lock()
		if waiting := s.waiting[request.ResponseNonce]; waiting != nil {
			waiting <- request.GetErrorDetail().GetMessage()
			delete(s.waiting, request.ResponseNonce)
		}
		names := request.ResourceNamesSubscribe
		known := s.wanted[request.TypeUrl]
		if known == nil {
			known = map[string]bool{}
			s.wanted[request.TypeUrl] = known
			if len(names) == 0 || names[0] == "*" {
				names = nil
				for name := range s.resources[request.TypeUrl] {
					names = append(names, name)
				}
			}
		}
		for _, name := range names {
			known[name] = true
		}
		if len(names) > 0 {
			s.send(request.TypeUrl, names)
		}
		s.lock.Unlock()
	}
}

// Under the lock.
func (s *server) send(kind string, names []string) string {
	s.nonce++
	response := &discovery.DeltaDiscoveryResponse{TypeUrl: kind, Nonce: strconv.Itoa(s.nonce)}
	for _, name := range names {
		if resource := s.resources[kind][name]; resource != nil {
			response.Resources = append(response.Resources, resource)
		} else {
			response.RemovedResources = append(response.RemovedResources, name)
		}
	}
	// A stream that is gone begins anew, and asks again.
	_ = s.stream.Send(response)
	return response.Nonce
}

func (s *server) set(kind, name string, message proto.Message) {
	s.nonce++
	if s.resources[kind] == nil {
		s.resources[kind] = map[string]*discovery.Resource{}
	}
	s.resources[kind][name] = &discovery.Resource{Name: name, Version: strconv.Itoa(s.nonce), Resource: packed(message)}
}

// Changes one resource and waits until the proxy has answered.
func (s *server) change(kind, name string, message proto.Message) time.Duration {
	answered := make(chan string, 1)
	s.lock.Lock()
	s.set(kind, name, message)
	began := time.Now()
	s.waiting[strconv.Itoa(s.nonce+1)] = answered
	s.send(kind, []string{name})
	if kind == clusterType {
		// A changed cluster warms until it has endpoints; Envoy does not ask for those that it has had.
		s.send(endpointType, []string{name})
	}
	s.lock.Unlock()
	select {
	case reason := <-answered:
		if reason != "" {
			log.Fatalf("%s %s was rejected: %s", kind, name, reason)
		}
		return time.Since(began)
	case <-time.After(60 * time.Second):
		log.Fatalf("%s %s was not answered", kind, name)
		return 0
	}
}

func clusterNamed(name string, timeout time.Duration) *cluster.Cluster {
	return &cluster.Cluster{Name: name, ConnectTimeout: durationpb.New(timeout),
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_EDS},
		EdsClusterConfig:     &cluster.Cluster_EdsClusterConfig{EdsConfig: ads},
		CommonLbConfig:       &cluster.Cluster_CommonLbConfig{HealthyPanicThreshold: &percent.Percent{}}}
}

// One host that answers, and others that are not healthy: nobody asks them.
func assignment(name string, port, hosts int) *endpoint.ClusterLoadAssignment {
	list := []*endpoint.LbEndpoint{}
	for index := 0; index < hosts; index++ {
		at := &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
			Address: fmt.Sprintf("10.%d.%d.%d", index>>16&255, index>>8&255, index&255), PortSpecifier: &core.SocketAddress_PortValue{PortValue: 1}}}}
		status := core.HealthStatus_UNHEALTHY
		if index == 0 {
			at, status = address(port), core.HealthStatus_HEALTHY
		}
		list = append(list, &endpoint.LbEndpoint{HealthStatus: status,
			HostIdentifier: &endpoint.LbEndpoint_Endpoint{Endpoint: &endpoint.Endpoint{Address: at}}})
	}
	return &endpoint.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpoint.LocalityLbEndpoints{{LbEndpoints: list}},
		Policy: &endpoint.ClusterLoadAssignment_Policy{OverprovisioningFactor: wrapperspb.UInt32(140)}}
}

func routes(name, target, version string) *route.RouteConfiguration {
	hosts := []*route.VirtualHost{{Name: "all", Domains: []string{"*"}, Routes: []*route.Route{{
		Match:  &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
		Action: &route.Route_Route{Route: &route.RouteAction{ClusterSpecifier: &route.RouteAction_Cluster{Cluster: target}}}}}}}
	return &route.RouteConfiguration{Name: name, VirtualHosts: hosts,
		ResponseHeadersToAdd: []*core.HeaderValueOption{{Header: &core.HeaderValue{Key: "x-version", Value: version}}}}
}

func chain(routes string, match *listener.FilterChainMatch) *listener.FilterChain {
	http := &manager.HttpConnectionManager{StatPrefix: "in",
		RouteSpecifier: &manager.HttpConnectionManager_Rds{Rds: &manager.Rds{ConfigSource: ads, RouteConfigName: routes}},
		HttpFilters: []*manager.HttpFilter{{Name: "router",
			ConfigType: &manager.HttpFilter_TypedConfig{TypedConfig: packed(&router.Router{})}}}}
	return &listener.FilterChain{Name: routes, FilterChainMatch: match, Filters: []*listener.Filter{{Name: "http",
		ConfigType: &listener.Filter_TypedConfig{TypedConfig: packed(http)}}}}
}

// Virtual hosts of one route configuration, one for each cluster: what a site has.
func everyCluster(count int) *route.RouteConfiguration {
	hosts := []*route.VirtualHost{}
	for index := 0; index < count; index++ {
		name := fmt.Sprintf("cluster-%d", index)
		one := routes("", name, "1").VirtualHosts[0]
		one.Name, one.Domains = name, []string{name + ".example.com"}
		hosts = append(hosts, one)
	}
	return &route.RouteConfiguration{Name: "hosts", VirtualHosts: hosts}
}

func free() int {
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer socket.Close()
	return socket.Addr().(*net.TCPAddr).Port
}

func bootstrap(xds, admin int) string {
	return fmt.Sprintf(`{"node": {"id": "n", "cluster": "c"}, "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}}},
"dynamic_resources": {"ads_config": {"api_type": "DELTA_GRPC", "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]},
"cds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}, "lds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}},
"static_resources": {"clusters": [{"name": "xds", "connect_timeout": "1s", "type": "STATIC",
"load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": %d}}}}]}]},
"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}}}]}}`, admin, xds)
}

func memory(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "VmRSS:") {
			kilobytes, _ := strconv.ParseFloat(strings.Fields(line)[1], 64)
			return kilobytes / 1024
		}
	}
	return 0
}

func cpu(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+2:]))
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100
}

func answering(name string) (int, func()) {
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) })}
	go server.Serve(socket)
	return socket.Addr().(*net.TCPAddr).Port, func() { server.Close() }
}

func median(durations []time.Duration) float64 {
	sort.Slice(durations, func(a, b int) bool { return durations[a] < durations[b] })
	return float64(durations[len(durations)/2].Microseconds()) / 1000
}

func main() {
	program := flag.String("proxy", "", "the proxy's binary; it is started with -c FILE")
	clusters := flag.Int("clusters", 1000, "how many clusters")
	hosts := flag.Int("hosts", 100, "how many hosts each has")
	configurations := flag.Int("configurations", 0, "how many route configurations, each of a filter chain of its own")
	verbose := flag.Bool("verbose", false, "show what the proxy says")
	storm := flag.Duration("storm", 0, "instead of measuring updates: load for so long without and with a storm of updates, in turns")
	turns := flag.Int("turns", 12, "how often both take turns")
	restarts := flag.Int("restarts", 20, "how often the control plane is killed and started again after that")
	rounds := flag.Int("rounds", 20, "how many changes of each kind")
	flag.Parse()
	first, closeFirst := answering("first")
	defer closeFirst()
	second, closeSecond := answering("second")
	defer closeSecond()

	s := &server{resources: map[string]map[string]*discovery.Resource{}, waiting: map[string]chan string{}}
	for index := 0; index < *clusters; index++ {
		name := fmt.Sprintf("cluster-%d", index)
		s.set(clusterType, name, clusterNamed(name, time.Second))
		s.set(endpointType, name, assignment(name, first, *hosts))
	}
	port, admin := free(), free()
	main := &listener.Listener{Name: "main", Address: address(port), FilterChains: []*listener.FilterChain{chain("hosts", nil)}}
	for index := 0; index < *configurations; index++ {
		name := fmt.Sprintf("routes-%d", index)
		match := &listener.FilterChainMatch{ServerNames: []string{name + ".example.com"}}
		main.FilterChains = append(main.FilterChains, chain(name, match))
		s.set(routeType, name, routes(name, "cluster-0", "1"))
	}
	s.set(listenerType, "main", main)
	s.set(routeType, "hosts", everyCluster(*clusters))

	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	xds := socket.Addr().(*net.TCPAddr).Port
	serve := func(socket net.Listener) *grpc.Server {
		grpcServer := grpc.NewServer(grpc.MaxRecvMsgSize(1<<30), grpc.MaxSendMsgSize(1<<30))
		discovery.RegisterAggregatedDiscoveryServiceServer(grpcServer, s)
		go grpcServer.Serve(socket)
		return grpcServer
	}
	grpcServer := serve(socket)
	file, err := os.CreateTemp("", "updates-*.json")
	if err != nil {
		log.Fatal(err)
	}
	defer os.Remove(file.Name())
	file.WriteString(bootstrap(xds, admin))
	file.Close()
	level := "error"
	if *verbose {
		level = "info"
	}
	began := time.Now()
	proxy := exec.Command(*program, "-c", file.Name(), "--concurrency", "1", "-l", level, "--disable-hot-restart")
	proxy.Stderr = os.Stderr
	if err := proxy.Start(); err != nil {
		log.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- proxy.Wait() }()
	defer func() {
		proxy.Process.Signal(syscall.SIGKILL)
		<-ended
	}()
	get := func(host string) (string, string) {
		request, _ := http.NewRequestWithContext(context.Background(), "GET", fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
		request.Host = host
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return "", ""
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		return string(body), response.Header.Get("x-version")
	}
	host := func(index int) string { return fmt.Sprintf("cluster-%d.example.com", index) }
	for answer, _ := get(host(*clusters - 1)); answer != "first"; answer, _ = get(host(*clusters - 1)) {
		select {
		case err := <-ended:
			log.Fatal("the proxy ended: ", err)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Since(began) > 300*time.Second {
			log.Fatal("the proxy does not serve")
		}
	}
	result := map[string]any{"clusters": *clusters, "hosts": *hosts, "configurations": *configurations,
		"start_seconds": time.Since(began).Seconds(), "start_cpu_seconds": cpu(proxy.Process.Pid)}
	time.Sleep(3 * time.Second)
	result["resident_megabytes"] = memory(proxy.Process.Pid)

	if *storm > 0 {
		restart := func(stop chan struct{}) {
			for round := 0; round < *restarts; round++ {
				grpcServer.Stop()
				time.Sleep(*storm / 80)
				if socket, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", xds)); err != nil {
					log.Fatal(err)
				}
				grpcServer = serve(socket)
				time.Sleep(*storm / 40)
			}
			<-stop
		}
		quiet, updates := &phase{disturb: func(stop chan struct{}) { <-stop }}, &phase{disturb: s.storm(*clusters, first, second, main)}
		// What the first requests cost belongs to neither.
		under(port, *clusters, *storm/time.Duration(*turns), quiet.disturb)
		for turn := 0; turn < *turns; turn++ {
			for _, phase := range []*phase{quiet, updates} {
				phase.add(under(port, *clusters, *storm/time.Duration(*turns), phase.disturb))
			}
		}
		again := &phase{disturb: restart}
		again.add(under(port, *clusters, *storm/20*time.Duration(*restarts), again.disturb))
		result["quiet"], result["storm"], result["restarts"], result["updates"] = quiet, updates, again, s.updates
		text, _ := json.Marshal(result)
		fmt.Println(string(text))
		return
	}
	measure := func(name string, change func(round int) time.Duration) {
		var taken []time.Duration
		before := cpu(proxy.Process.Pid)
		for round := 0; round < *rounds; round++ {
			taken = append(taken, change(round))
			time.Sleep(20 * time.Millisecond)
		}
		result[name+"_cpu_ms"] = (cpu(proxy.Process.Pid) - before) * 1000 / float64(*rounds)
		result[name+"_worst_ms"] = float64(func() (worst time.Duration) {
			for _, one := range taken {
				worst = max(worst, one)
			}
			return
		}().Microseconds()) / 1000
		result[name+"_ms"] = median(taken)
	}
	measure("one_endpoint", func(round int) time.Duration {
		index := round % *clusters
		name, port, want := fmt.Sprintf("cluster-%d", index), second, "second"
		if round / *clusters % 2 == 1 {
			port, want = first, "first"
		}
		began := time.Now()
		s.change(endpointType, name, assignment(name, port, *hosts))
		for answer, _ := get(host(index)); answer != want; answer, _ = get(host(index)) {
		}
		return time.Since(began)
	})
	measure("one_cluster", func(round int) time.Duration {
		name := fmt.Sprintf("cluster-%d", round%*clusters)
		return s.change(clusterType, name, clusterNamed(name, 2*time.Second+time.Duration(round)*time.Millisecond))
	})
	if *configurations > 0 {
		measure("one_configuration", func(round int) time.Duration {
			name := fmt.Sprintf("routes-%d", round%*configurations)
			return s.change(routeType, name, routes(name, "cluster-0", strconv.Itoa(round+2)))
		})
	}
	text, _ := json.Marshal(result)
	fmt.Println(string(text))
}
