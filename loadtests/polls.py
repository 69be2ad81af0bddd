"""A recording HTTP server answers what Envoy and tidegate poll for (xDS over REST), both by one script: failures, what is no
JSON, what has not changed, what the proxy refuses, fields that nobody knows, nothing. The requests of each kind (headers and
body, repetitions once) and what was counted are compared. It ends with 0 when all is equal.

    python3 loadtests/polls.py                    # the newest tidegate in target/
    python3 loadtests/polls.py --subject envoy    # Envoy on both sides
"""

import argparse
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

from harness import environment, process

API = "type.googleapis.com/envoy."
PATIENCE = 30
SOURCE = {"resource_api_version": "V3", "api_config_source": {
    "api_type": "REST", "transport_api_version": "V3", "cluster_names": ["control"], "refresh_delay": "0.1s"}}
# What one proxy tells of itself; headers that follow from it.
OWN = ("user_agent_build_version", "extensions")
OWN_HEADERS = ("content-length",)
COUNTED = ["init_fetch_timeout", "update_failure", "update_rejected"]


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def endpoints(name, port):
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]}


def answer(version, *resources, **more):
    return 200, json.dumps({"version_info": version, "resources": resources, **more})


def script():
    """What each path is answered with, in turn; the last for ever."""
    up = {"@type": API + "config.cluster.v3.Cluster", "name": "up", "connect_timeout": "1s", "type": "EDS",
          "eds_cluster_config": {"eds_config": SOURCE}}
    bad = {"@type": API + "config.cluster.v3.Cluster", "name": "bad", "type": "STATIC", "lb_policy": "CLUSTER_PROVIDED"}
    here = {"@type": API + "config.endpoint.v3.ClusterLoadAssignment", **endpoints("up", 9)}
    other = {"@type": API + "config.endpoint.v3.ClusterLoadAssignment", **endpoints("other", 9)}
    layer = {"@type": API + "service.runtime.v3.Runtime", "name": "layer", "layer": {"a": 1}}
    return {
        "runtime": [(500, ""), answer("1"), answer("2", layer), answer("3", layer, layer), answer("4", layer)],
        "clusters": [(503, "no"), (200, "{not json"), (304, ""), answer("1", up), (302, ""), answer("2", up, bad),
                     answer("3", up, bogus=1), answer("4", {**up, "bogus": 1}), answer("5", here), answer("6", up)],
        "endpoints": [(200, ""), answer("1", here), answer("2"), answer("3", other), answer("4", here, here),
                      answer("5", here)],
        "listeners": [answer("1", type_url="wrong"), (304, ""), answer("2")],
        # Of a listener of the bootstrap; its scopes name routes, which are polled for one by one.
        "scoped-routes": [(500, ""), answer("1"), answer("2", scope("a", "a"), scope("b", "b")),
                          answer("3", scope("a", "a"), scope("b", "a")), answer("4", scope("a", "a", routes="")),
                          answer("5", scope("a", "c", bogus=1)), answer("6", here), answer("7", scope("a", "c"))],
        "routes": [(500, ""), answer("1", routes("r"))],
    }


def routes(name):
    return {"@type": API + "config.route.v3.RouteConfiguration", "name": name, "virtual_hosts": [
        {"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}]}]}


def scope(name, key, routes="r", **more):
    return {"@type": API + "config.route.v3.ScopedRouteConfiguration", "name": name, "route_configuration_name": routes,
            "key": {"fragments": [{"string_key": key}]}, **more}


def scoped_listener(port):
    """Its scopes are polled for."""
    key = {"fragments": [{"header_value_extractor": {"name": "x-scope", "index": 0}}]}
    manager = {"@type": API + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "in",
               "http_filters": [{"name": "router", "typed_config": {"@type": API + "extensions.filters.http.router.v3.Router"}}],
               "scoped_routes": {"name": "scopes", "scope_key_builder": key, "rds_config_source": SOURCE,
                                 "scoped_rds": {"scoped_rds_config_source": SOURCE}}}
    return {"name": "scoped", "address": address(port),
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.left, self.seen, self.lock = script(), {}, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        """A proxy that is stopped leaves amid everything."""

    def take(self, path, headers, body):
        with self.lock:
            kind = path.rpartition(":")[2]
            node = body["node"]
            for own in OWN:
                node.pop(own, None)
            headers = sorted((name.lower(), value) for name, value in headers if name.lower() not in OWN_HEADERS)
            asked = (path, headers, json.dumps(body, sort_keys=True))
            seen = self.seen.setdefault(kind, [])
            if not seen or seen[-1] != asked:
                seen.append(asked)
            answers = self.left[kind]
            return answers.pop(0) if len(answers) > 1 else answers[0]

    def is_done(self):
        with self.lock:
            return all(len(answers) == 1 for answers in self.left.values())


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status, text = self.server.take(self.path, self.headers.items(), body)
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        if status != 304:
            self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def counts(admin):
    """Of failures and rejections: how often polls succeed depends on the jitter."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/stats?format=json&type=Counters", timeout=5) as told:
        stats = {stat["name"]: stat["value"] for stat in json.load(told)["stats"] if "name" in stat}
    scopes = ["cluster_manager.cds", "listener_manager.lds", "cluster.up", "runtime", "http.in.scoped_rds.scopes", "http.in.rds.r"]
    return {f"{scope}.{name}": stats.get(f"{scope}.{name}") for scope in scopes for name in COUNTED}


def run(binary, directory):
    """What one proxy asked and counted."""
    server, admin = Server(), process.free_port()
    layers = [{"name": "layer", "rtds_layer": {"name": "layer", "rtds_config": SOURCE}}]
    bootstrap = {
        "node": {"id": "node", "cluster": "test"}, "admin": {"address": address(admin)},
        "dynamic_resources": {"cds_config": SOURCE, "lds_config": SOURCE}, "layered_runtime": {"layers": layers},
        "static_resources": {"listeners": [scoped_listener(process.free_port())], "clusters": [{"name": "control", "connect_timeout": "1s", "type": "STATIC",
                                           "load_assignment": endpoints("control", server.server_address[1])}]}}
    config = os.path.join(directory, "bootstrap.json")
    with open(config, "w") as file:
        json.dump(bootstrap, file)
    proxy = subprocess.Popen([str(binary), "-c", config, "--concurrency", "1", "--disable-hot-restart"], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while not server.is_done():
            if time.monotonic() > deadline:
                raise SystemExit(f"{binary} does not ask for {server.left}")
            time.sleep(0.05)
        # The last answers are taken, and told as versions.
        time.sleep(1)
        return server.seen, counts(admin)
    finally:
        proxy.kill()
        proxy.wait()
        server.shutdown()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", help="the tidegate binary (default: the newest in target/); `envoy`: the oracle")
    options = parser.parse_args()
    environment.enter()
    oracle = environment.oracle()
    subject = oracle if options.subject == "envoy" else environment.subject(options.subject)
    with tempfile.TemporaryDirectory() as directory:
        (asked, counted), (ours, our_counts) = run(oracle, directory), run(subject, directory)
    differences = [f"{name}: Envoy {value}, tidegate {our_counts[name]}" for name, value in counted.items()
                   if value != our_counts[name]]
    for kind, requests in asked.items():
        if requests != ours.get(kind):
            differences += [f"{kind}:", *(f"  Envoy    {one}" for one in requests),
                            *(f"  tidegate {one}" for one in ours.get(kind, []))]
    print("\n".join(differences) or f"equal: {sum(map(len, asked.values()))} requests of {len(asked)} kinds, and counts")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
