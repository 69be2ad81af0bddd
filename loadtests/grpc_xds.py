"""gRPC clients resolve `xds:///service` from `tidegate control`, without a proxy: grpcio, and grpc-js where Node is there. They
balance over two servers, follow changes of endpoints, keep calling when something is refused and when the control plane
restarts; no call may fail. It ends with 0 when all holds.

    python3 loadtests/grpc_xds.py                        # the newest tidegate in target/
    python3 loadtests/grpc_xds.py --client grpcio
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent import futures

from control_plane import API, PATIENCE, Control, ads, refusals, typed
from harness import environment, process

HERE = os.path.dirname(os.path.abspath(__file__))
CALLS = 40


class Resources:
    """What the control plane serves: a listener for `service`, its routes, cluster and endpoints."""

    def __init__(self, directory):
        self.directory = directory
        os.mkdir(directory)
        manager = {"@type": API + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                   "stat_prefix": "x", "rds": {"config_source": ads(), "route_config_name": "routes"},
                   "http_filters": [{"name": "router",
                                     "typed_config": {"@type": API + "extensions.filters.http.router.v3.Router"}}]}
        self.put("listener.json", typed("config.listener.v3.Listener",
                                        {"name": "service", "api_listener": {"api_listener": manager}}))
        self.put("routes.json", typed("config.route.v3.RouteConfiguration", {
            "name": "routes", "virtual_hosts": [{
                "name": "all", "domains": ["*"],
                "routes": [{"match": {"prefix": ""}, "route": {"cluster": "cluster"}}]}]}))
        self.cluster("ROUND_ROBIN")

    def put(self, name, *resources):
        beside = os.path.join(self.directory, ".new")
        with open(beside, "w") as file:
            json.dump({"resources": resources}, file)
        os.rename(beside, os.path.join(self.directory, name))

    def cluster(self, policy):
        self.put("cluster.json", typed("config.cluster.v3.Cluster", {
            "name": "cluster", "type": "EDS", "lb_policy": policy, "eds_cluster_config": {"eds_config": ads()}}))

    def endpoints(self, *ports):
        hosts = [{"health_status": "HEALTHY", "endpoint": {"address": {
            "socket_address": {"address": "127.0.0.1", "port_value": port}}}} for port in ports]
        self.put("endpoints.json", typed("config.endpoint.v3.ClusterLoadAssignment", {
            "cluster_name": "cluster",
            "endpoints": [{"locality": {"zone": "z"}, "load_balancing_weight": 1, "lb_endpoints": hosts}]}))


def serve(grpc, name):
    """A server that answers every call with its name."""
    class Service(grpc.GenericRpcHandler):
        def service(self, call):
            return grpc.unary_unary_rpc_method_handler(lambda message, context: name.encode())

    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(Service(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


class Grpcio:
    def __init__(self, grpc):
        self.channel = grpc.insecure_channel("xds:///service")
        self.method = self.channel.unary_unary("/test.Service/Name")

    def call(self, times):
        answers = []
        for _ in range(times):
            try:
                answers.append(self.method(b"", timeout=5).decode())
            except Exception as error:
                answers.append(f"error {error}")
        return answers

    def close(self):
        self.channel.close()


class GrpcJs:
    HOME, CACHE = os.path.join(HERE, "interop", "grpc-js"), os.path.join(HERE, ".cache", "grpc-js")

    @classmethod
    def missing(cls):
        """Why it cannot run here; none: it can."""
        if not (shutil.which("npm") and shutil.which("node")):
            return "it needs Node and npm"
        if not os.path.isdir(os.path.join(cls.CACHE, "node_modules", "@grpc", "grpc-js-xds")):
            os.makedirs(cls.CACHE, exist_ok=True)
            shutil.copy(os.path.join(cls.HOME, "package.json"), cls.CACHE)
            if subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund"], cwd=cls.CACHE).returncode:
                return "npm could not install @grpc/grpc-js-xds"
        return None

    def __init__(self, log):
        shutil.copy(os.path.join(self.HOME, "client.js"), self.CACHE)
        self.process = subprocess.Popen(["node", "client.js"], cwd=self.CACHE, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=log, text=True)

    def call(self, times):
        self.process.stdin.write(f"{times}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def run(make, binary, bootstrap, ports, servers, directory):
    resources = Resources(os.path.join(directory, "resources"))
    one, two, three = (port for _, port in servers)
    resources.endpoints(one, two)
    with open(bootstrap, "w") as file:
        json.dump({"xds_servers": [{"server_uri": f"127.0.0.1:{ports['xds']}", "channel_creds": [{"type": "insecure"}],
                                    "server_features": ["xds_v3"]}],
                   "node": {"id": "grpc", "cluster": "clients", "locality": {"zone": "z"}}}, file)
    failed, calls = [], 0
    client = None
    with open(os.path.join(directory, "log"), "w") as log:
        control = Control(binary, resources.directory, ports, log)

        def call():
            nonlocal calls
            calls += CALLS
            answers = client.call(CALLS)
            failed.extend(answer for answer in answers if answer.startswith("error"))
            return set(answers)

        def until(wanted):
            """The same servers, all of them, in several rounds."""
            deadline = time.monotonic() + PATIENCE
            start = time.monotonic()
            while call() != wanted:
                if time.monotonic() > deadline:
                    raise SystemExit(f"never only {wanted}; {failed[-3:]}")
            return time.monotonic() - start

        try:
            control.start()
            client = make(log)
            if call() != {"one", "two"}:
                raise SystemExit(f"not balanced over both: {failed[-3:]}")
            resources.endpoints(two, three)
            took = until({"two", "three"})
            # A policy that no client knows: it says so, and goes on with what it has.
            resources.cluster("MAGLEV")
            status = control.wait("a refusal", refusals)
            reason = refusals(status)[0]
            until({"two", "three"})
            resources.cluster("ROUND_ROBIN")
            control.wait("nothing is refused", lambda status: not refusals(status))
            control.end()
            until({"two", "three"})
            resources.endpoints(one)
            control.start()
            until({"one"})
            control.end()
            if failed:
                raise SystemExit(f"{len(failed)} of {calls} calls failed: {failed[:3]}")
        except BaseException:
            log.flush()
            with open(log.name) as lines:
                print("".join(lines.readlines()[-30:]), file=sys.stderr)
            raise
        finally:
            if client:
                client.close()
            if control.process and control.process.poll() is None:
                control.process.kill()
                control.process.wait()
    return calls, took, reason


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", help="the tidegate binary (default: the newest in target/)")
    parser.add_argument("--client", choices=["grpcio", "grpc-js"], help="only this client")
    options = parser.parse_args()
    environment.enter()
    binary = environment.subject(options.subject)
    with tempfile.TemporaryDirectory() as directory:
        # Read once by each client's library: all runs use the same file and ports.
        bootstrap = os.path.join(directory, "bootstrap.json")
        os.environ["GRPC_XDS_BOOTSTRAP"] = bootstrap
        import grpc
        ports = {name: process.free_port() for name in ("xds", "status")}
        servers = [serve(grpc, name) for name in ("one", "two", "three")]
        clients = {"grpcio": lambda log: Grpcio(grpc), "grpc-js": GrpcJs}
        for name, make in clients.items():
            if options.client not in (None, name):
                continue
            if name == "grpc-js" and (why := GrpcJs.missing()):
                print(f"skipped: grpc-js: {why}", flush=True)
                continue
            place = os.path.join(directory, name)
            os.mkdir(place)
            calls, took, reason = run(make, binary, bootstrap, ports, servers, place)
            print(f"ok  {name}: {calls} calls, none failed; endpoints followed in {took:.2f} s; refused: {reason[:120]}", flush=True)
        for server, _ in servers:
            server.stop(None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
