"""What discovery.py plays besides its first script: scripts of a control plane that says exactly what it is told
(loadtests/interop/controlplane/scripted). Each sets resources step by step and asks the proxy what it serves then; answers and
stats are compared as requests are.
"""

import hashlib
import http.client
import json
import socket
import ssl
import urllib.request

from harness import certificates

API = "type.googleapis.com/envoy."
ADS = {"ads": {}, "resource_api_version": "V3"}
TYPES = {"clusters": API + "config.cluster.v3.Cluster", "endpoints": API + "config.endpoint.v3.ClusterLoadAssignment",
         "listeners": API + "config.listener.v3.Listener", "routes": API + "config.route.v3.RouteConfiguration",
         "scopes": API + "config.route.v3.ScopedRouteConfiguration", "hosts": API + "config.route.v3.VirtualHost",
         "runtime": API + "service.runtime.v3.Runtime",
         "secrets": API + "extensions.transport_sockets.tls.v3.Secret"}


def listener(port, routes, *filters, name="main"):
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": API + "extensions.filters.http.router.v3.Router"}}
    manager = {"@type": API + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
               "stat_prefix": "in", "http_filters": [*filters, router], **routes}
    return {"name": name, "resource": {
        "@type": TYPES["listeners"], "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}}


def scoped(steps, wait="15s"):
    key = {"fragments": [{"header_value_extractor": {"name": "x-scope", "index": 0}}]}
    source = {**steps.source, "initial_fetch_timeout": wait}
    return {"scoped_routes": {"name": "scopes", "scope_key_builder": key, "rds_config_source": ADS,
                              "scoped_rds": {"scoped_rds_config_source": source}}}


def virtual_host(name, domains, text):
    return {"name": name, "domains": domains, "routes": [
        {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": text}}}]}


def routes(name, text=None, hosts=None, **fields):
    hosts = [virtual_host("all", ["*"], text or name)] if hosts is None else hosts
    return {"name": name, "resource": {"@type": TYPES["routes"], "name": name, "virtual_hosts": hosts, **fields}}


def scope(name, key, named=None, own=None, **fields):
    resource = {"@type": TYPES["scopes"], "name": name, "key": {"fragments": [{"string_key": key}]}, **fields}
    if named:
        resource["route_configuration_name"] = named
    if own:
        resource["route_configuration"] = {"name": own, "virtual_hosts": [virtual_host("all", ["*"], own)]}
    return {"name": name, "resource": resource}


class Steps:
    """One proxy under one script; `source`: where what listeners name comes from, on their stream or on those of its types."""

    def __init__(self, control, ports, source):
        self.control, self.ports, self.source, self.answers, self.step = control, ports, source, [], 0
        self.restarted = False

    def put(self, **types):
        """The next version; types that are not given stay as they were. Waits until nothing more is asked."""
        self.step += 1
        self.control.put({"version": str(self.step), "types": {TYPES[kind]: resources for kind, resources in types.items()}})
        self.control.settle()
        self.control.lines.append(f"step {self.step}")

    def ask(self, host="test", scope=None, method="GET", body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["listener"], timeout=5)
        try:
            headers = {"Host": host} | ({"x-scope": scope} if scope else {})
            connection.request(method, "/", body, headers)
            answer = connection.getresponse()
            told = f"{answer.status} {answer.read().decode()}"
        except OSError as error:
            told = type(error).__name__
        finally:
            connection.close()
        self.answers.append(f"step {self.step}: {host} {scope or ''} {told}".strip())

    def stats(self, pattern):
        url = f"http://127.0.0.1:{self.ports['admin']}/stats?filter={pattern}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        # How often it was tried while the control plane was away is a matter of chance.
        lines = [line for line in lines if not (self.restarted and ".update_attempt:" in line)]
        self.answers += [f"step {self.step}: {line}" for line in lines]

    def dump(self, resource):
        url = f"http://127.0.0.1:{self.ports['admin']}/config_dump?resource={resource}"
        with urllib.request.urlopen(url, timeout=5) as answer:
            told = json.load(answer)
        for config in told.get("configs", []):
            config.pop("last_updated", None)
            config.pop("client_status", None)
        self.answers.append(f"step {self.step}: {json.dumps(told.get('configs', []), sort_keys=True)}")

    def runtime(self):
        """What the runtime says, all layers together."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['admin']}/runtime", timeout=5) as answer:
            entries = json.load(answer)["entries"]
        told = {key: entry["final_value"] for key, entry in sorted(entries.items())}
        self.answers.append(f"step {self.step}: {json.dumps(told)}")

    def shake(self):
        """Whose certificate is shown to a client that believes everything."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with socket.create_connection(("127.0.0.1", self.ports["listener"]), timeout=5) as plain:
                with context.wrap_socket(plain) as connection:
                    told = hashlib.sha256(connection.getpeercert(True)).hexdigest()[:16]
        except OSError as error:
            told = type(error).__name__
        self.answers.append(f"step {self.step}: {told}")

    def restart(self):
        """The control plane is gone, and comes back with nothing; the proxy asks again."""
        self.restarted = True
        self.control.stop()
        before = len(self.control.lines)
        self.control.start()
        self.control.wait_for("a new stream", lambda line: line in self.control.lines[before:])


SCOPE_STATS = "^http.in.scoped_rds.scopes.(.*_scopes|config_reload|update_(attempt|success|rejected))$"


def scopes(steps):
    """Scopes come, share routes, change keys, conflict, are wrong in part, and go."""
    port = steps.ports["listener"]

    def answers(*keys):
        for key in keys:
            steps.ask(scope=key)
        steps.stats(SCOPE_STATS)

    steps.put(listeners=[listener(port, scoped(steps))], scopes=[scope("a", "a", "ra"), scope("b", "b", "rb")],
              routes=[routes("ra"), routes("rb"), routes("rc")])
    answers("a", "b", "c", None)
    steps.put(scopes=[scope("a", "a", "ra"), scope("c", "c", "ra")])
    answers("a", "b", "c")
    steps.put(scopes=[scope("a", "a", "ra"), scope("c", "a", "rc")])
    answers("a", "c")
    steps.put(scopes=[scope("c", "a", "rc")])
    answers("a", "c")
    steps.put(scopes=[scope("d", "d", "rb"), scope("e", "e"), scope("f", "f", "ra")])
    answers("a", "d", "e", "f")
    steps.put(scopes=[scope("d", "d", "ra", own="both"), scope("e", "e", "nowhere")])
    answers("d", "e")
    steps.put(scopes=[scope("d", "d", "ra", on_demand=True), scope("e", "e", "rb")])
    answers("d", "e")
    steps.dump("dynamic_scoped_route_configs")
    steps.restart()
    steps.put(listeners=[listener(port, scoped(steps))], scopes=[scope("a", "a", "ra")], routes=[routes("ra"), routes("rb")])
    answers("a", "d", "e")
    steps.put(scopes=[])
    answers("a")
    steps.put(listeners=[])


def missing_scopes(steps):
    """A listener waits for scopes for a time; a first answer that is no good ends that, too."""
    port = steps.ports["listener"]
    steps.put(listeners=[listener(port, scoped(steps, "0.5s"))])
    steps.stats("^http.in.scoped_rds.scopes.(init_fetch_timeout|update_success)$")
    steps.ask(scope="a")
    steps.put(scopes=[scope("a", "a")])
    steps.put(scopes=[scope("a", "a", "ra")], routes=[routes("ra")])
    steps.ask(scope="a")


def scopes_on_demand(steps):
    """Routes of a scope come when a request asks for them."""
    port = steps.ports["listener"]
    filters = [{"name": "on_demand", "typed_config": {"@type": API + "extensions.filters.http.on_demand.v3.OnDemand"}}]
    steps.put(listeners=[listener(port, scoped(steps), *filters)],
              scopes=[scope("a", "a", "ra", on_demand=True), scope("b", "b", "rb"), scope("c", "c", "rc", on_demand=True)],
              routes=[routes("ra"), routes("rb"), routes("rc")])
    steps.stats(SCOPE_STATS)
    for key in ("b", "a", "a", "none"):
        steps.ask(scope=key)
        steps.control.settle()
    steps.ask(scope="c", method="POST", body="x" * 100_000)
    steps.stats(SCOPE_STATS)
    steps.stats("^http.in.downstream_rq_(total|2xx|4xx)$")
    steps.put(scopes=[scope("a", "k", "ra", on_demand=True), scope("b", "b", "rb", on_demand=True), scope("c", "c", "rc")])
    steps.stats(SCOPE_STATS)
    for key in ("a", "k", "b", "c"):
        steps.ask(scope=key)
        steps.control.settle()
    steps.put(scopes=[])
    steps.stats(SCOPE_STATS)
    steps.ask(scope="k")


HOST_STATS = "^http.in.rds.*(config_reload|update_(attempt|success|rejected|empty))$"


def host(name, *domains, text=None, lazy=True):
    """A virtual host; one that is not lazy comes to whoever asks for everything."""
    resource = {"@type": TYPES["hosts"], **virtual_host(f"rt/{name}", list(domains), text or name)}
    return {"name": f"rt/{name}", "resource": resource, "lazy": lazy, "aliases": [f"rt/{domain}" for domain in domains]}


def virtual_hosts(steps):
    """Hosts come at first and on demand, are not there, change, go, and conflict."""
    filters = [{"name": "on_demand", "typed_config": {"@type": API + "extensions.filters.http.on_demand.v3.OnDemand"}}]
    listeners = [listener(steps.ports["listener"], {"rds": {"config_source": steps.source, "route_config_name": "rt"}}, *filters)]

    def own(text):
        return [routes("rt", hosts=[virtual_host("own", ["own.com"], text)], vhds={"config_source": steps.source})]

    def answers(*hosts, **request):
        for name in hosts:
            steps.ask(name, **request)
            steps.control.settle()

    steps.put(listeners=listeners, routes=own("own"),
              hosts=[host("one", "one.com", lazy=False), host("two", "two.com"), host("three", "three.com", "www.three.com")])
    answers("own.com", "one.com", "TWO.com", "two.com", "none.com", "none.com", "two.com:80", "www.three.com", "three.com")
    steps.stats(HOST_STATS)
    hosts = [host("one", "one.com", text="changed", lazy=False), host("two", "two.com", text="changed"),
             host("four", "four.com")]
    steps.put(hosts=hosts)
    answers("one.com", "two.com", "three.com", "www.three.com")
    answers("four.com", "five.com", method="POST", body="x" * 100_000)
    steps.stats(HOST_STATS)
    steps.put(routes=own("again"))
    answers("own.com", "one.com", "two.com")
    steps.put(hosts=[*hosts, host("bad", "one.com", lazy=False)])
    answers("own.com", "one.com")
    steps.put(hosts=[*hosts, host("six", "six.com", lazy=False)])
    answers("six.com")
    steps.stats(HOST_STATS)
    steps.stats("^http.in.downstream_rq_(total|2xx|4xx)$")
    steps.dump("dynamic_route_configs")
    steps.restart()
    steps.put(listeners=listeners, routes=own("own"), hosts=[host("one", "one.com", text="new", lazy=False), host("two", "two.com")])
    answers("own.com", "one.com", "two.com", "four.com")


def lined_hosts(steps):
    """Hosts beside those of a route configuration that stands in a listener."""
    filters = [{"name": "on_demand", "typed_config": {"@type": API + "extensions.filters.http.on_demand.v3.OnDemand"}}]

    def listeners(text):
        own = {"name": "rt", "virtual_hosts": [virtual_host("own", ["own.com"], text)], "vhds": {"config_source": steps.source}}
        return [listener(steps.ports["listener"], {"route_config": own}, *filters)]

    def answers(*hosts):
        for name in hosts:
            steps.ask(name)
            steps.control.settle()
        steps.stats("^vhds.*(config_reload|update_(attempt|success|rejected|empty))$")

    hosts = [host("one", "one.com", lazy=False), host("two", "two.com")]
    steps.put(listeners=listeners("own"), hosts=hosts)
    answers("own.com", "one.com", "two.com", "none.com", "none.com")
    steps.put(hosts=[host("one", "one.com", text="changed", lazy=False), host("two", "two.com")])
    answers("one.com", "two.com")
    steps.put(hosts=[*hosts, host("bad", "own.com", lazy=False)])
    answers("own.com", "one.com")
    steps.put(hosts=[host("two", "two.com")])
    answers("one.com", "two.com")


def missing_hosts(steps):
    """A listener waits for hosts for a time."""
    own = [virtual_host("own", ["own.com"], "own")]
    source = {**steps.source, "initial_fetch_timeout": "0.5s"}
    steps.put(listeners=[listener(steps.ports["listener"], {"rds": {"config_source": steps.source, "route_config_name": "rt"}})],
              routes=[routes("rt", hosts=own, vhds={"config_source": source})])
    steps.control.settle()
    steps.stats("^http.in.rds.vhds.rt.init_fetch_timeout$")
    steps.ask("own.com")
    steps.put(hosts=[host("one", "one.com", lazy=False)])
    steps.ask("one.com")


REFUSAL_STATS = "update_(attempt|success|rejected|failure|empty)$"


def refusals(steps):
    """Of each type something that breaks the schema's rules, something else that cannot act, and then good ones again."""
    def resource(kind, known_as, **fields):
        return [{"name": known_as, "resource": {"@type": TYPES[kind], **fields}}]

    def cluster(**fields):
        return resource("clusters", "a", name="a", type="EDS", eds_cluster_config={"eds_config": ADS}, **fields)

    def endpoints(address="127.0.0.1", **fields):
        endpoint = {"endpoint": {"address": {"socket_address": {"address": address, "port_value": 1}}}, **fields}
        return resource("endpoints", "a", cluster_name="a", endpoints=[{"lb_endpoints": [endpoint]}])

    def listeners(*filters):
        return [listener(steps.ports["listener"], {"rds": {"config_source": ADS, "route_config_name": "rt"}}, *filters)]

    def unreadable_listener():
        told = listeners()
        told[0]["resource"]["filter_chains"][0]["filters"][0]["name"] = ""
        return told

    def hosts(*domains):
        return [routes("rt", hosts=[virtual_host("own", list(domains), "own")])]

    good = {"clusters": cluster(), "endpoints": endpoints(), "listeners": listeners(), "routes": hosts("*")}
    unreadable = {"clusters": cluster(connect_timeout="0s"), "endpoints": endpoints(load_balancing_weight=0),
                  "listeners": unreadable_listener(), "routes": hosts()}
    refused = {"clusters": cluster(lb_subset_config={"subset_selectors": [{"keys": ["a", "a"]}]}, lb_policy="CLUSTER_PROVIDED"),
               "endpoints": endpoints("not.an.address"), "listeners": listeners({"name": "none"}), "routes": hosts("a", "a")}
    steps.put(**good)
    steps.ask()
    steps.stats(REFUSAL_STATS)
    for bad in (unreadable, refused):
        for kind in good:
            steps.put(**{kind: bad[kind]})
            steps.stats(REFUSAL_STATS)
            steps.put(**{kind: good[kind]})
            steps.stats(REFUSAL_STATS)
    steps.put(clusters=[])
    steps.put(listeners=[])
    steps.stats(REFUSAL_STATS)


def refused_start(steps):
    """Of each type the first that comes breaks the schema's rules: a start goes on."""
    def cluster(**fields):
        return {"name": "a", "resource": {"@type": TYPES["clusters"], "name": "a", "type": "EDS",
                                          "eds_cluster_config": {"eds_config": ADS}, **fields}}

    good = [listener(steps.ports["listener"], {"rds": {"config_source": ADS, "route_config_name": "rt"}})]
    steps.put(clusters=[cluster(connect_timeout="0s")])
    steps.put(clusters=[cluster()], endpoints=[{"name": "a", "resource": {
        "@type": TYPES["endpoints"], "cluster_name": "a", "endpoints": [{"priority": 200}]}}])
    steps.stats(REFUSAL_STATS)
    steps.put(listeners=good, routes=[routes("rt", hosts=[virtual_host("own", [], "own")])])
    steps.stats(REFUSAL_STATS)
    steps.put(routes=[routes("rt")])
    steps.ask()


LISTENERS = "xdstp://some/envoy.config.listener.v3.Listener/all/"


def collections(steps):
    """Listeners of a collection come, change and go; others are nobody's. (Who comes back is not compared: tidegate says then
    what it has of the collection, and is sent only what changed; Envoy says nothing and is sent all again.)"""
    def told(*names, text="1"):
        own = [virtual_host("own", ["*"], text)]
        return [listener(steps.ports["listener"], {"route_config": {"name": "rt", "virtual_hosts": own}}, name=name)
                for name in names]

    def look():
        steps.ask()
        steps.stats("^listener_manager.(lds.update_(attempt|success|rejected)|listener_(added|modified|removed|create_success))$")

    one = LISTENERS + "one?a=1&b=2"
    steps.put(listeners=told(one))
    look()
    steps.put(listeners=told(one, text="2"))
    look()
    steps.put(listeners=told(LISTENERS + "one", "xdstp://some/envoy.config.listener.v3.Listener/other/one?a=1&b=2"))
    look()
    steps.put(listeners=told(one, text="3"))
    look()


def layers(steps):
    """A layer of the runtime comes, changes, is refused, goes, and comes back."""
    def layer(**values):
        return [{"name": "values", "resource": {"@type": TYPES["runtime"], "name": "values", "layer": values}}]

    def look():
        steps.runtime()
        steps.stats("^runtime.(update_(attempt|success|rejected|failure)|load_(success|error)|num_keys|num_layers)$")

    steps.put(runtime=layer(a=1, b="x"))
    look()
    steps.put(runtime=layer(a=2))
    look()
    steps.put(runtime=layer(a=[1]))
    look()
    steps.put(runtime=layer(a=3))
    look()
    steps.restart()
    steps.put(runtime=layer(a=3, c=True))
    steps.runtime()


def secrets(steps):
    """A listener's certificate comes late, changes, is refused, and comes back."""
    def pem(certificate, key):
        def text(name):
            return {"inline_string": (certificates.standing() / name).read_text()}

        return [{"name": "server", "resource": {"@type": TYPES["secrets"], "name": "server", "tls_certificate": {
            "certificate_chain": text(certificate), "private_key": text(key)}}}]

    def look():
        steps.shake()
        steps.stats("^(sds.server.update_(attempt|success|rejected|failure)|listener_manager.(lds.update_(success|rejected)|listener_create_success))$")

    told = listener(steps.ports["listener"], {"route_config": {"name": "rt", "virtual_hosts": [virtual_host("own", ["*"], "own")]}})
    sds = [{"name": "server", "sds_config": {**ADS, "initial_fetch_timeout": "0s"}}]
    told["resource"]["filter_chains"][0]["transport_socket"] = {"name": "tls", "typed_config": {
        "@type": API + "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {"tls_certificate_sds_secret_configs": sds}}}
    steps.put(listeners=[told])
    look()
    steps.put(secrets=pem("tls.crt", "tls.key"))
    look()
    steps.put(secrets=pem("client.crt", "client.key"))
    look()
    steps.put(secrets=pem("tls.crt", "client.key"))
    look()
    steps.put(secrets=pem("tls.crt", "tls.key"))
    look()


def own_streams(dialect):
    """A stream for each type, in the dialect of the aggregated one."""
    return {"api_config_source": {"api_type": dialect, "transport_api_version": "V3",
                                  "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]},
            "resource_api_version": "V3"}


def aggregated(_):
    return ADS


BOTH = ("GRPC", "DELTA_GRPC")
# Each with the dialects that it is played in, and whence. What is asked on one stream comes before or after what is asked on
# another by chance, so it is with routes and their scopes: that is not compared then.
SCRIPTS = {"scopes": (scopes, BOTH, aggregated), "scopes that do not come": (missing_scopes, BOTH, aggregated),
           "scopes on demand": (scopes_on_demand, BOTH, aggregated),
           "virtual hosts": (virtual_hosts, BOTH[1:], aggregated),
           "virtual hosts of routes in line": (lined_hosts, BOTH[1:], aggregated),
           "virtual hosts that do not come": (missing_hosts, BOTH[1:], aggregated),
           "scopes on streams of their own": (scopes, BOTH, own_streams),
           "scopes on demand, on streams of their own": (scopes_on_demand, BOTH, own_streams),
           "virtual hosts on streams of their own": (virtual_hosts, BOTH[1:], own_streams),
           "refusals": (refusals, BOTH, aggregated), "a refused start": (refused_start, BOTH, aggregated),
           "a collection": (collections, BOTH, aggregated), "layers of the runtime": (layers, BOTH, aggregated),
           "secrets": (secrets, BOTH, aggregated)}
# What their bootstraps say besides.
BOOTSTRAPS = {collections: {"dynamic": {"lds_resources_locator": LISTENERS + "*?b=2&a=1"}},
              layers: {"layered_runtime": {"layers": [
                  {"name": "first", "static_layer": {"a": 0, "b": "y"}},
                  {"name": "second", "rtds_layer": {"name": "values", "rtds_config": ADS}}]}}}
# Those that ask for clusters, too.
WITH_CLUSTERS = (refusals, refused_start)
