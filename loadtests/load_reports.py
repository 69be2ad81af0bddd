#!/usr/bin/env python3
"""What Envoy and tidegate report of their loads (LRS) after the same requests, against one scripted server: answers, errors, a
host that cannot be reached, requests that are dropped or find a breaker open; with endpoints and without, of some clusters and of all. Sums are
compared, since the moments of reports differ. It ends with 0 when all is equal.

    python3 loadtests/load_reports.py                    # the newest tidegate in target/
    python3 loadtests/load_reports.py --subject envoy    # Envoy on both sides
"""

import argparse
import http.client
import http.server
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from concurrent import futures

from harness import environment, process

environment.enter()

import grpc  # noqa: E402

API = "type.googleapis.com/envoy."
PATIENCE = 30
# Field numbers of envoy.config.endpoint.v3: the names that they get here, and what they hold.
ENDPOINT = {2: "successful", 3: "active", 4: "failed", 7: "issued"}
LOCALITY = {1: ("locality", {1: "region", 2: "zone"}), 2: "successful", 3: "active", 4: "failed",
            7: ("endpoints", ENDPOINT), 8: "issued"}
CLUSTER = {1: "name", 6: "service", 2: ("localities", LOCALITY), 3: "dropped",
           5: ("categories", {1: "category", 2: "count"})}
REQUEST = {1: ("node", {1: "id", 10: "features"}), 2: ("clusters", CLUSTER)}
CASES = {"by endpoint": (["up", "dead", "shed", "full", "queued", "nowhere"], True, False), "of all": ([], False, True),
         "of one": (["up"], False, False)}


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def decode(data, fields):
    """The fields that are named; messages and strings are lists."""
    message, at = {}, 0
    while at < len(data):
        tag, at = varint(data, at)
        name = fields.get(tag >> 3)
        if tag & 7 == 0:
            value, at = varint(data, at)
            if name:
                message[name] = value
            continue
        length, at = varint(data, at) if tag & 7 == 2 else ({1: 8, 5: 4}[tag & 7], at)
        value, at = data[at:at + length], at + length
        if isinstance(name, tuple):
            message.setdefault(name[0], []).append(decode(value, name[1]))
        elif name:
            message.setdefault(name, []).append(value.decode())
    return message


def wish(clusters, endpoints, everything):
    """A LoadStatsResponse that wants a report each 100 ms."""
    interval = b"\x10\x80\xc2\xd7\x2f"
    names = b"".join(bytes([1 << 3 | 2, len(name)]) + name.encode() for name in clusters)
    return (names + bytes([2 << 3 | 2, len(interval)]) + interval + (b"\x18\x01" if endpoints else b"")
            + (b"\x20\x01" if everything else b""))


class Server(grpc.GenericRpcHandler):
    def __init__(self, wanted):
        self.wanted, self.told = wanted, queue.Queue()
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        self.server.add_generic_rpc_handlers((self,))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def service(self, call):
        if call.method == "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats":
            return grpc.stream_stream_rpc_method_handler(self.stream)

    def stream(self, requests, _):
        self.told.put(decode(next(requests), REQUEST))
        yield self.wanted
        for request in requests:
            self.told.put(decode(request, REQUEST))


class Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response({"/bad": 500, "/missing": 404}.get(self.path, 200))
        self.send_header("content-length", "0")
        self.end_headers()

    def handle(self):
        try:
            super().handle()
        except ConnectionError:
            # A proxy that is stopped.
            pass

    def log_message(self, *_):
        pass


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def cluster(name, port, **more):
    assignment = {"cluster_name": name, "endpoints": [
        {"locality": {"region": "r", "zone": "z"}, "lb_endpoints": [{"endpoint": {"address": address(port)}}]}]}
    assignment.update(more.pop("assignment", {}))
    return {"name": name, "connect_timeout": "1s", "type": "STATIC", "load_assignment": assignment, **more}


def bootstrap(ports):
    http2 = {"@type": API + "extensions.upstreams.http.v3.HttpProtocolOptions",
             "explicit_http_config": {"http2_protocol_options": {}}}
    drops = {"policy": {"drop_overloads": [{"category": "c", "drop_percentage": {"numerator": 100}}]}}
    routes = [{"match": {"prefix": path}, "route": {"cluster": name}}
              for path, name in (("/dead", "dead"), ("/shed", "shed"), ("/full", "full"), ("/queued", "queued"), ("/", "up"))]
    manager = {"@type": API + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
               "stat_prefix": "in", "route_config": {"virtual_hosts": [
                   {"name": "all", "domains": ["*"], "routes": routes}]},
               "http_filters": [{"name": "envoy.filters.http.router",
                                 "typed_config": {"@type": API + "extensions.filters.http.router.v3.Router"}}]}
    return {
        "node": {"id": "node", "cluster": "test"},
        "cluster_manager": {"load_stats_config": {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [
            {"envoy_grpc": {"cluster_name": "lrs"}}]}},
        "static_resources": {
            "listeners": [{"name": "main", "address": address(ports["listener"]),
                           "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}],
            "clusters": [cluster("up", ports["upstream"]), cluster("dead", ports["dead"]),
                         cluster("shed", ports["upstream"], assignment=drops),
                         *(cluster(name, ports["upstream"], circuit_breakers={"thresholds": [{limit: 0}]})
                           for name, limit in (("full", "max_requests"), ("queued", "max_pending_requests"))),
                         cluster("lrs", ports["lrs"], typed_extension_protocol_options={
                             "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2})]}}


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", path)
    connection.getresponse().read()
    connection.close()


def add(sums, report):
    """What is under way is a state, not a sum, and the stream of reports itself is among it."""
    for told in report.get("clusters", []):
        name = told["name"][0]
        sums[f"{name} service"] = told.get("service")
        parts = [("", told)] + [(" categories", part) for part in told.get("categories", [])]
        for locality in told.get("localities", []):
            zone = json.dumps(locality["locality"])
            parts += [(f" {zone}", locality)] + [(f" {zone} endpoint", part) for part in locality.get("endpoints", [])]
        for where, part in parts:
            for what, count in part.items():
                if isinstance(count, int) and what != "active":
                    sums[f"{name}{where} {what}"] = sums.get(f"{name}{where} {what}", 0) + count


def run(binary, wanted, upstream, directory):
    """What one proxy told: of itself, and in sum."""
    server = Server(wish(*wanted))
    ports = {"upstream": upstream, "lrs": server.port, "listener": process.free_port(), "dead": process.free_port()}
    config = os.path.join(directory, "bootstrap.json")
    with open(config, "w") as file:
        json.dump(bootstrap(ports), file)
    proxy = subprocess.Popen([str(binary), "-c", config, "--concurrency", "1", "--use-dynamic-base-id"]
                             if "envoy" in os.path.basename(str(binary))
                             else [str(binary), "-c", config, "--concurrency", "1"],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        first = server.told.get(timeout=PATIENCE)
        # The wish is known once there is a report.
        while not server.told.get(timeout=PATIENCE).get("clusters"):
            pass
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                get(ports["listener"], "/")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        for path in ("/", "/bad", "/missing", "/dead", "/shed", "/dead", "/full", "/queued"):
            get(ports["listener"], path)
        sums, end = {}, time.monotonic() + 1
        while time.monotonic() < end:
            add(sums, server.told.get(timeout=PATIENCE))
        return {"first": first, **sums}
    finally:
        proxy.kill()
        proxy.wait()
        server.server.stop(None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", help="the tidegate binary (default: the newest in target/); `envoy`: the oracle")
    options = parser.parse_args()
    oracle = environment.oracle()
    subject = oracle if options.subject == "envoy" else environment.subject(options.subject)
    upstream = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    different = 0
    for name, wanted in CASES.items():
        with tempfile.TemporaryDirectory() as directory:
            theirs, ours = (run(binary, wanted, upstream.server_address[1], directory) for binary in (oracle, subject))
        differences = [f"  {what}: Envoy {theirs.get(what)}, tidegate {ours.get(what)}"
                       for what in sorted({*theirs, *ours}) if theirs.get(what) != ours.get(what)]
        print(f"{name}: " + ("\n".join(["different", *differences]) if differences else f"equal, {len(theirs)} values"))
        different += len(differences)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
