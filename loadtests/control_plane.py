"""`tidegate control` drives the real Envoy and tidegate through one script, in both dialects, over streams of
one type and over REST: start, update, what the source refuses, what the proxy refuses, removal, restarts of either side; then
restarts of the control plane with other clusters each time (flips). Requests run all the while: none may fail. It ends with 0 when all holds.

    python3 loadtests/control_plane.py                    # the newest tidegate in target/
    python3 loadtests/control_plane.py --case envoy       # the cases whose names hold this
"""

import argparse
import http.client
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


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def endpoints(name, port):
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]}


def ads():
    return {"ads": {}, "resource_api_version": "V3"}


def alone(api_type):
    """A stream (or polls) of its own for each type."""
    services = {"cluster_names": ["control"], "refresh_delay": "0.2s"} if api_type == "REST" else {
        "grpc_services": [{"envoy_grpc": {"cluster_name": "control"}}]}
    return {"resource_api_version": "V3", "api_config_source": {
        "api_type": api_type, "transport_api_version": "V3", **services}}


def bootstrap(source, dialect, xds, admin):
    http2 = {"@type": API + "extensions.upstreams.http.v3.HttpProtocolOptions",
             "explicit_http_config": {"http2_protocol_options": {}}}
    cluster = {"name": "control", "connect_timeout": "1s", "type": "STATIC",
               "load_assignment": endpoints("control", xds)}
    if dialect != "REST":
        cluster["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2}
    dynamic = {"cds_config": source, "lds_config": source}
    if "ads" in source:
        dynamic["ads_config"] = {"api_type": dialect, "transport_api_version": "V3",
                                 "grpc_services": [{"envoy_grpc": {"cluster_name": "control"}}]}
    return {"node": {"id": "node", "cluster": "test"}, "admin": {"address": address(admin)},
            "dynamic_resources": dynamic, "static_resources": {"clusters": [cluster]}}


def typed(kind, message):
    return {"@type": API + kind, **message}


class Source:
    """A directory of resources that `tidegate control` watches; the whole of it is moved into place file by file."""

    def __init__(self, directory, source, ports):
        self.directory, self.source, self.ports = directory, source, ports
        os.mkdir(directory)

    def put(self, name, *resources):
        beside = os.path.join(self.directory, ".new")
        with open(beside, "w") as file:
            json.dump({"resources": resources}, file)
        os.rename(beside, os.path.join(self.directory, name))

    def clusters(self, *names, bad=None):
        eds = [typed("config.cluster.v3.Cluster", {"name": name, "connect_timeout": "1s", "type": "EDS",
                                                   "eds_cluster_config": {"eds_config": self.source}})
               for name in names]
        if bad:
            # A cluster that the schema takes and no proxy can build.
            eds.append(typed("config.cluster.v3.Cluster", {"name": bad, "type": "STATIC", "lb_policy": "CLUSTER_PROVIDED"}))
        assignments = [typed("config.endpoint.v3.ClusterLoadAssignment", endpoints(name, self.ports["upstream"]))
                       for name in names]
        self.put("clusters.json", *eds, *assignments)

    def routes(self, version, target):
        self.put("routes.json", typed("config.route.v3.RouteConfiguration", {
            "name": "routes", "response_headers_to_add": [{"header": {"key": "x-version", "value": version}}],
            "virtual_hosts": [{"name": "all", "domains": ["*"],
                               "routes": [{"match": {"prefix": "/"}, "route": {"cluster": target}}]}]}))

    def listener(self, name, port):
        manager = {"@type": API + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                   "stat_prefix": name, "rds": {"config_source": self.source, "route_config_name": "routes"},
                   "http_filters": [{"name": "envoy.filters.http.router",
                                     "typed_config": {"@type": API + "extensions.filters.http.router.v3.Router"}}]}
        self.put(name + ".json", typed("config.listener.v3.Listener", {
            "name": name, "address": address(port),
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}))

    def together(self, change):
        """Makes several changes in one step: what is written stands beside until all of it is there."""
        directory = self.directory
        self.directory = tempfile.mkdtemp(dir=os.path.dirname(directory))
        change()
        for name in os.listdir(self.directory):
            os.rename(os.path.join(self.directory, name), os.path.join(directory, name))
        self.directory = directory

    def remove(self, name):
        os.remove(os.path.join(self.directory, name))


class Control:
    """`tidegate control`, on the same ports each time it is started."""

    def __init__(self, binary, directory, ports, log):
        self.command = [str(binary), "control", "--source", directory, "--listen", f"127.0.0.1:{ports['xds']}",
                        "--admin", f"127.0.0.1:{ports['status']}", "--bootstrap-cluster", "control"]
        self.port, self.log, self.process = ports["status"], log, None

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        self.wait("it listens", lambda status: True)

    def status(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/status", timeout=5) as answer:
                return json.load(answer)
        except OSError:
            return None

    def wait(self, what, holds):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            status = self.status()
            if status is not None and holds(status):
                return status
            time.sleep(0.02)
        raise SystemExit(f"never: {what}; {json.dumps(self.status(), indent=1)}")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def end(self):
        """By SIGTERM, which it must take at once."""
        self.process.terminate()
        code = self.process.wait(timeout=PATIENCE)
        if code != 0:
            raise SystemExit(f"the control plane ended with {code}")


class Traffic:
    """Requests one after another on new connections, from now until it is stopped; what fails is kept."""

    def __init__(self, port, threads=1):
        self.port, self.sent, self.failed, self.version = port, 0, [], None
        self.going = True
        self.threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def _run(self):
        while self.going:
            self.sent += 1
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/")
                answer = connection.getresponse()
                answer.read()
                connection.close()
                self.version = answer.headers["x-version"]
                if answer.status != 200:
                    self.failed.append(answer.status)
            except OSError as error:
                self.failed.append(str(error))
            time.sleep(0.002)

    def wait(self, version):
        deadline = time.monotonic() + PATIENCE
        start = time.monotonic()
        while self.version != version:
            if time.monotonic() > deadline:
                raise SystemExit(f"version {version} never served; {self.failed[-3:]}")
            time.sleep(0.005)
        return time.monotonic() - start

    def stop(self):
        self.going = False
        for thread in self.threads:
            thread.join()


def reachable(port):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False


def warm(admin, cluster):
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/clusters", timeout=5) as answer:
        return f"{cluster}::127.0.0.1" in answer.read().decode()


def until(what, holds):
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"never: {what}")
        time.sleep(0.02)


def refusals(status):
    return [kind["refusal"]["reason"] for client in status["clients"] for kind in client["types"] if kind["refusal"]]


class Stage:
    """A control plane, an upstream, and room for one proxy: all that was started is ended with it. What was logged is shown when
    something went wrong."""

    def __init__(self, binary, control_binary, source, dialect, directory):
        self.ports = {name: process.free_port() for name in ("xds", "status", "listener", "other", "admin", "upstream")}
        self.files = Source(os.path.join(directory, "resources"), source, self.ports)
        self.files.clusters("a")
        self.files.routes("1", "a")
        self.files.listener("main", self.ports["listener"])
        self.config = os.path.join(directory, "bootstrap.json")
        with open(self.config, "w") as file:
            json.dump(bootstrap(source, dialect, self.ports["xds"], self.ports["admin"]), file)
        self.binary, self.proxy, self.traffic = binary, None, None
        self.log = open(os.path.join(directory, "log"), "w")
        self.control = Control(control_binary, self.files.directory, self.ports, self.log)
        self.upstream = subprocess.Popen(
            [sys.executable, "-m", "http.server", str(self.ports["upstream"]), "--bind", "127.0.0.1"], cwd=directory,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start(self, threads=1):
        """Until the first version is served to requests that do not end before this."""
        self.control.start()
        self.start_proxy()
        until("the proxy serves", lambda: reachable(self.ports["listener"]))
        self.traffic = Traffic(self.ports["listener"], threads)
        self.traffic.wait("1")

    def start_proxy(self):
        self.proxy = subprocess.Popen([str(self.binary), "-c", self.config, "--concurrency", "1", "--disable-hot-restart"],
                                      stdout=self.log, stderr=self.log)

    def nothing_failed(self):
        self.traffic.stop()
        failed, sent = self.traffic.failed, self.traffic.sent
        if failed:
            raise SystemExit(f"{len(failed)} of {sent} requests failed: {failed[:5]}")
        return sent

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if error:
            self.log.flush()
            with open(self.log.name) as lines:
                print("".join(lines.readlines()[-40:]), file=sys.stderr)
        if self.traffic:
            self.traffic.stop()
        for child in (self.proxy, self.control.process, self.upstream):
            if child and child.poll() is None:
                child.kill()
                child.wait()
        self.log.close()


def run(stage, source, dialect):
    """The script, with one proxy. What it returns is how long changes took, in seconds, and how many requests there were."""
    streams, took = dialect != "REST", []
    files, control, ports = stage.files, stage.control, stage.ports

    def move(version, before, after, bad=None):
        """To the last cluster of those that are there afterwards. Only an aggregated stream can keep the order."""
        if "ads" in source:
            files.together(lambda: (files.clusters(*after, bad=bad), files.routes(version, after[-1])))
        else:
            files.clusters(*{*before, *after}, bad=bad)
            until("the new cluster is warm", lambda: warm(ports["admin"], after[-1]))
            files.routes(version, after[-1])
        took.append(traffic.wait(version))
        files.clusters(*after, bad=bad)

    stage.start()
    traffic = stage.traffic

    # An update that moves routes to a new cluster, and takes the old one away at the same time.
    move("2", ["a"], ["b"])
    control.wait("all is taken", lambda status: settled(status, streams))

    # The source refuses what names nothing: with file and line, and nothing changes.
    files.routes("3", "nowhere")
    status = control.wait("the source refuses", lambda status: status["source"]["refused"])
    fault = status["source"]["refused"]["faults"][0]
    if not fault.startswith("routes.json:1: ") or "there is no Cluster 'nowhere'" not in fault:
        raise SystemExit(f"a fault without its place: {fault}")
    files.routes("4", "b")
    took.append(traffic.wait("4"))

    # The proxy refuses one cluster of several: the others arrive, and the control plane says who refused what.
    move("5", ["b"], ["b", "c"], bad="bad")
    if streams:
        control.wait("a refusal", lambda status: any("bad" in reason for reason in refusals(status)))
        if dialect == "DELTA_GRPC":
            control.wait("only the bad one is refused", lambda status: [
                kind["refused"] for client in status["clients"] for kind in client["types"]
                if kind["type"] == "Cluster"] == [["bad"]])
    files.clusters("b", "c")
    control.wait("nothing is refused", lambda status: not refusals(status) and settled(status, streams))

    # A listener comes and goes.
    files.listener("other", ports["other"])
    until("another listener", lambda: reachable(ports["other"]))
    files.remove("other.json")
    until("it is gone", lambda: not reachable(ports["other"]))

    # The control plane is gone, and comes back with something else.
    control.end()
    time.sleep(0.5)
    files.routes("6", "c")
    control.start()
    took.append(traffic.wait("6"))
    # ... and with the same.
    control.end()
    control.start()
    if streams:
        control.wait("the proxy is back", lambda status: status["clients"] and settled(status, streams))
    files.routes("7", "b")
    took.append(traffic.wait("7"))

    # The proxy is gone, and comes back.
    sent = stage.nothing_failed()
    stage.proxy.terminate()
    stage.proxy.wait(timeout=PATIENCE)
    control.wait("nobody is there", lambda status: not status["clients"])
    stage.start_proxy()
    until("the proxy serves again", lambda: reachable(ports["listener"]))
    control.end()
    return took, sent


def flip(stage, dialect, rounds):
    """Restarts of the control plane, each with other clusters and routes than before. It does not know what the proxy has, and
    still what the routes need comes before them and goes after them. To who is told the state of the world only additions can
    come so: that the old cluster stays a while is up to whoever changes it."""
    took, before = [], "a"
    stage.start(threads=4)
    for number in range(rounds):
        after, version = "ab"[(number + 1) % 2] + str(number), str(number + 2)
        # It leaves, or is killed, in turns.
        stage.control.end() if number % 2 else stage.control.kill()
        stay = [] if dialect == "DELTA_GRPC" else [before]
        stage.files.clusters(*stay, after)
        stage.files.routes(version, after)
        stage.control.start()
        took.append(stage.traffic.wait(version))
        stage.files.clusters(after)
        stage.control.wait("the old cluster is gone", lambda status: status["clients"] and settled(status, True))
        until("the proxy has let go of it", lambda: not warm(stage.ports["admin"], before))
        before = after
    sent = stage.nothing_failed()
    stage.control.end()
    return took, sent


def settled(status, streams):
    """Whether each client has all that it asked for."""
    return not streams or all(
        client["resources"][state] == 0 for client in status["clients"] for state in ("not_sent", "unanswered"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", help="the tidegate binary (default: the newest in target/)")
    parser.add_argument("--case", default="", help="only the cases whose names hold this")
    parser.add_argument("--flips", type=int, default=10, help="how often the control plane comes back with other clusters")
    options = parser.parse_args()
    environment.enter()
    tidegate, envoy = environment.subject(options.subject), environment.oracle()
    proxies = (("envoy", envoy), ("tidegate", tidegate))
    aggregated = (("aggregated delta", ads(), "DELTA_GRPC"), ("aggregated state of the world", ads(), "GRPC"))
    alone_each = (("delta by type", alone("DELTA_GRPC"), "DELTA_GRPC"),
                  ("state of the world by type", alone("GRPC"), "GRPC"), ("REST", alone("REST"), "REST"))
    cases = [(f"{name} {what}", binary, source, dialect, lambda stage, source=source, dialect=dialect: run(stage, source, dialect))
             for name, binary in proxies for what, source, dialect in aggregated + alone_each]
    cases += [(f"{name} flips, {what}", binary, source, dialect,
               lambda stage, dialect=dialect: flip(stage, dialect, options.flips))
              for name, binary in proxies for what, source, dialect in aggregated]
    for name, binary, source, dialect, script in cases:
        if options.case in name:
            with tempfile.TemporaryDirectory() as directory, Stage(binary, tidegate, source, dialect, directory) as stage:
                took, sent = script(stage)
            print(f"ok  {name}: {sent} requests, none failed; the slowest change took {max(took):.2f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
