package main

// A storm: requests at a steady rate while everything is updated many times a second, half of it wrong, and while the control
// plane goes away and comes back. No request may fail. Storm and quiet take turns, so that what else the machine does meets both.

import (
	"fmt"
	"math/rand"
	"net/http"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// How many requests a second, over how many connections.
const rate, connections = 1000, 20

// What a time of load saw.
type seen struct {
	requests, failed int64
	latencies        []time.Duration
	firstFailure     string
}

// All turns of one kind.
type phase struct {
	disturb      func(chan struct{})
	Requests     int64     `json:"requests"`
	Failed       int64     `json:"failed"`
	FirstFailure string    `json:"first_failure"`
	P99s         []float64 `json:"p99_ms"`
	P50s         []float64 `json:"p50_ms"`
}

func (p *phase) add(s *seen) {
	p.Requests += s.requests
	p.Failed += s.failed
	if p.FirstFailure == "" {
		p.FirstFailure = s.firstFailure
	}
	p.P99s, p.P50s = append(p.P99s, s.percentile(99)), append(p.P50s, s.percentile(50))
}

// Asks steadily until `stop` is closed.
func load(port, clusters int, stop chan struct{}) *seen {
	result := &seen{}
	var lock sync.Mutex
	var workers sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections}, Timeout: 10 * time.Second}
	for worker := 0; worker < connections; worker++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			ticks := time.NewTicker(connections * time.Second / rate)
			defer ticks.Stop()
			var own []time.Duration
			for {
				select {
				case <-stop:
					lock.Lock()
					result.latencies = append(result.latencies, own...)
					lock.Unlock()
					return
				case <-ticks.C:
				}
				request, _ := http.NewRequest("GET", fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
				request.Host = fmt.Sprintf("cluster-%d.example.com", rand.Intn(clusters))
				began := time.Now()
				response, err := client.Do(request)
				own = append(own, time.Since(began))
				atomic.AddInt64(&result.requests, 1)
				failure := ""
				if err != nil {
					failure = err.Error()
				} else {
					response.Body.Close()
					if response.StatusCode != 200 {
						failure = response.Status
					}
				}
				if failure != "" && atomic.AddInt64(&result.failed, 1) == 1 {
					result.firstFailure = failure
				}
			}
		}()
	}
	workers.Wait()
	sort.Slice(result.latencies, func(a, b int) bool { return result.latencies[a] < result.latencies[b] })
	return result
}

func (s *seen) percentile(percent int) float64 {
	if len(s.latencies) == 0 {
		return 0
	}
	return float64(s.latencies[len(s.latencies)*percent/100].Microseconds()) / 1000
}

// Runs `disturb` under load for so long.
func under(port, clusters int, lasts time.Duration, disturb func(stop chan struct{})) *seen {
	stop, result := make(chan struct{}), make(chan *seen, 1)
	go func() { result <- load(port, clusters, stop) }()
	ended := make(chan struct{})
	go func() {
		disturb(stop)
		close(ended)
	}()
	time.Sleep(lasts)
	close(stop)
	<-ended
	return <-result
}

// Sends one update after the other, every second one wrong, without waiting for answers.
func (s *server) storm(clusters int, first, second int, main *listener.Listener) func(chan struct{}) {
	round := 0
	return func(stop chan struct{}) {
		ticks := time.NewTicker(time.Second / 20)
		defer ticks.Stop()
		for ; ; round++ {
			select {
			case <-stop:
				return
			case <-ticks.C:
			}
			name, bad := fmt.Sprintf("cluster-%d", round%clusters), round%2 == 1
			s.lock.Lock()
			s.updates++
			switch round / 2 % 4 {
			case 0:
				changed := clusterNamed(name, time.Second+time.Duration(round)*time.Millisecond)
				if bad {
					changed.LbPolicy = cluster.Cluster_CLUSTER_PROVIDED
				}
				s.put(clusterType, name, changed, bad)
				s.push(endpointType, name)
			case 1:
				port := first
				if round/8%2 == 1 {
					port = second
				}
				changed := assignment(name, port, 3)
				if bad {
					changed.Endpoints[0].LbEndpoints[0].GetEndpoint().Address.GetSocketAddress().Address = "not.an.address"
				}
				s.put(endpointType, name, changed, bad)
			case 2:
				changed := everyCluster(clusters)
				changed.ResponseHeadersToAdd = routes("", "", fmt.Sprint(round)).ResponseHeadersToAdd
				if bad {
					changed.VirtualHosts[0].Routes[0].Match.PathSpecifier = &route.RouteMatch_SafeRegex{
						SafeRegex: &matcher.RegexMatcher{Regex: "("}}
				}
				s.put(routeType, "hosts", changed, bad)
			case 3:
				changed := proto.Clone(main).(*listener.Listener)
				changed.PerConnectionBufferLimitBytes = wrapperspb.UInt32(uint32(100000 + round))
				if bad {
					changed.FilterChains = nil
				}
				s.put(listenerType, "main", changed, bad)
			}
			s.lock.Unlock()
		}
	}
}

// Under the lock: sends it; what is wrong is not kept for a stream that begins anew.
func (s *server) put(kind, name string, message proto.Message, bad bool) {
	before := s.resources[kind][name]
	s.set(kind, name, message)
	s.push(kind, name)
	if bad {
		s.resources[kind][name] = before
	}
}

func (s *server) push(kind, name string) {
	if s.stream != nil {
		s.send(kind, []string{name})
	}
}
