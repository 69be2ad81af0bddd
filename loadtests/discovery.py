"""The same control plane (go-control-plane's own server and cache, loadtests/interop/controlplane) drives the real Envoy and
tidegate through one script: start, update, a bad update, removal, and its own restart; another one, which says exactly what it
is told, plays the scripts of discovery_scripts.py. What each of them asks is compared type by type: versions, names,
rejections; nonces only by whether there is one. It ends with 0 when all is equal.

    python3 loadtests/discovery.py                    # the newest tidegate in target/, both dialects
    python3 loadtests/discovery.py --subject envoy    # Envoy on both sides
    python3 loadtests/discovery.py --show             # and prints what was asked
    python3 loadtests/discovery.py --script scopes    # only scripts whose name has this in it
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent import futures

import discovery_scripts
from harness import environment, process

HERE = os.path.dirname(os.path.abspath(__file__))
API = "type.googleapis.com/envoy."
ADS = {"ads": {}, "resource_api_version": "V3"}
PATIENCE = 30
# What ends the part of a trace that is compared across types, and what that is called.
STARTED, IN_ORDER = "started", "in order"


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def endpoints(name, port):
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]}


def bootstrap(dialect, xds, admin, clusters=True, dynamic=(), **more):
    http2 = {"@type": API + "extensions.upstreams.http.v3.HttpProtocolOptions",
             "explicit_http_config": {"http2_protocol_options": {}}}
    return {
        "node": {"id": "node", "cluster": "test"},
        "admin": {"address": address(admin)},
        "dynamic_resources": {
            "ads_config": {"api_type": dialect, "transport_api_version": "V3", "set_node_on_first_message_only": True,
                           "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]},
            **({"cds_config": ADS} if clusters else {}), "lds_config": ADS, **dict(dynamic)},
        **more,
        "static_resources": {"clusters": [{
            "name": "xds", "connect_timeout": "1s", "type": "STATIC", "load_assignment": endpoints("xds", xds),
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2}}]}}


def snapshot(version, ports, clusters=("a",), target="a", bad=False):
    """One node's resources; `bad` adds a cluster that neither proxy can build."""
    eds = [{"name": name, "connect_timeout": "1s", "type": "EDS", "eds_cluster_config": {"eds_config": ADS}}
           for name in clusters]
    if bad:
        eds.append({"name": "bad", "type": "STATIC", "lb_policy": "CLUSTER_PROVIDED"})
    manager = {"@type": API + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
               "stat_prefix": "in", "rds": {"config_source": ADS, "route_config_name": "routes"},
               "http_filters": [{"name": "envoy.filters.http.router",
                                 "typed_config": {"@type": API + "extensions.filters.http.router.v3.Router"}}]}
    routes = {"name": "routes", "response_headers_to_add": [{"header": {"key": "x-version", "value": version}}],
              "virtual_hosts": [{"name": "all", "domains": ["*"],
                                 "routes": [{"match": {"prefix": "/"}, "route": {"cluster": target}}]}]}
    return {"version": version, "clusters": eds,
            "endpoints": [endpoints(name, ports["upstream"]) for name in clusters],
            "listeners": [{"name": "main", "address": address(ports["listener"]),
                           "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}],
            "routes": [routes]}


class ControlPlane:
    """The program, on the same ports each time it is started."""

    def __init__(self, program, ports):
        self.program, self.ports, self.lines = program, ports, []
        self.process = None

    def start(self):
        self.process = subprocess.Popen(
            [self.program, "-listen", f"127.0.0.1:{self.ports['xds']}", "-control", f"127.0.0.1:{self.ports['control']}"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.process.stdout.readline()
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()

    def _read(self, output):
        for line in output:
            self.lines.append(json.loads(line))

    def put(self, resources):
        url = f"http://127.0.0.1:{self.ports['control']}/snapshot"
        urllib.request.urlopen(url, json.dumps(resources).encode(), timeout=PATIENCE).read()

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.lines.append("restart")

    def settle(self):
        """Waits until nothing more is asked for half a second."""
        deadline = time.monotonic() + PATIENCE
        seen, since = len(self.lines), time.monotonic()
        while time.monotonic() - since < 0.5:
            if time.monotonic() > deadline:
                raise SystemExit("it never stops asking")
            time.sleep(0.05)
            if len(self.lines) != seen:
                seen, since = len(self.lines), time.monotonic()

    def wait_for(self, what, holds):
        deadline = time.monotonic() + PATIENCE
        while not any(isinstance(line, dict) and holds(line) for line in self.lines[:]):
            if time.monotonic() > deadline:
                raise SystemExit(f"never: {what}")
            time.sleep(0.05)


def serves(port, version):
    """Waits until a request is answered under this version of the routes."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as answer:
                if answer.headers["x-version"] == version:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.05)
    raise SystemExit(f"version {version} never served")


def run(binary, program, dialect, directory):
    """What one proxy asked during the script."""
    ports = {name: process.free_port() for name in ("xds", "control", "listener", "admin", "upstream")}
    upstream = subprocess.Popen([sys.executable, "-m", "http.server", str(ports["upstream"]), "--bind", "127.0.0.1"],
                                cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    control = ControlPlane(program, ports)
    config = os.path.join(directory, "bootstrap.json")
    with open(config, "w") as file:
        json.dump(bootstrap(dialect, ports["xds"], ports["admin"]), file)
    proxy = None
    try:
        control.start()
        control.put(snapshot("1", ports))
        proxy = subprocess.Popen([binary, "-c", config, "--concurrency", "1", "--disable-hot-restart"], stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
        serves(ports["listener"], "1")
        control.settle()
        control.lines.append(STARTED)
        control.put(snapshot("2", ports, clusters=("a", "b"), target="b"))
        serves(ports["listener"], "2")
        control.settle()
        control.put(snapshot("3", ports, bad=True))
        serves(ports["listener"], "3")
        control.wait_for("a rejection", lambda line: line["code"] == 13)
        control.put(snapshot("4", ports))
        serves(ports["listener"], "4")
        control.settle()
        control.stop()
        serves(ports["listener"], "4")
        control.start()
        control.put(snapshot("5", ports))
        serves(ports["listener"], "5")
        control.settle()
    finally:
        for child in (proxy, control.process, upstream):
            if child:
                child.kill()
                child.wait()
    return control.lines


def play(binary, program, dialect, directory, script, source):
    """The same under a script, with what the proxy answered and counted."""
    ports = {name: process.free_port() for name in ("xds", "control", "listener", "admin")}
    control = ControlPlane(program, ports)
    config = os.path.join(directory, "bootstrap.json")
    with open(config, "w") as file:
        clusters, more = script in discovery_scripts.WITH_CLUSTERS, discovery_scripts.BOOTSTRAPS.get(script, {})
        json.dump(bootstrap(dialect, ports["xds"], ports["admin"], clusters, **more), file)
    proxy = None
    try:
        control.start()
        proxy = subprocess.Popen([binary, "-c", config, "--concurrency", "1", "--disable-hot-restart"], stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
        control.wait_for("a first request", lambda line: True)
        steps = discovery_scripts.Steps(control, ports, source(dialect))
        script(steps)
    finally:
        for child in (proxy, control.process):
            if child:
                child.kill()
                child.wait()
    return traces(control.lines) | {"answers": steps.answers}


def traces(lines):
    """By type, in short, and of all types in order; the same said again is said once, since this control plane repeats what was
    rejected at once."""
    kinds = {}
    end = lines.index(STARTED) if STARTED in lines else len(lines)
    for place, line in enumerate(lines):
        if isinstance(line, str):
            for trace in kinds.values():
                trace.append(line)
            continue
        kind = line["type"].rsplit(".", 1)[-1]
        short = (f"v{line['version']} {'nonce' if line['nonce'] else 'no nonce'} +{line['names']}"
                 f" -{line.get('unsubscribe') or []} has{sorted(line.get('initial') or {})}"
                 f" {'rejected ' + str(line['code']) if line['code'] else ''}").strip()
        for name, told in ((kind, short), (IN_ORDER, f"{kind} {short}")):
            trace = kinds.setdefault(name, [])
            if (name == kind or place < end) and (not trace or trace[-1] != told):
                trace.append(told)
    return kinds


def build(package=".", name="controlplane"):
    """A control plane's binary, built once."""
    program = os.path.join(HERE, ".cache", name)
    go = environment.tool("go", "golang")
    subprocess.run([go, "build", "-o", program, package], cwd=os.path.join(HERE, "interop", "controlplane"), check=True)
    return program


def compare(name, sides, show):
    """How many types of what both asked differ."""
    different = 0
    for kind in sorted(set(sides[0]) | set(sides[1])):
        wanted, found = (side.get(kind, []) for side in sides)
        equal = wanted == found
        different += not equal
        print(f"{'equal    ' if equal else 'DIFFERENT'}  {name} {kind}")
        if show or not equal:
            for side, trace in (("envoy", wanted), ("tidegate", found)):
                print(f"  {side}:")
                print("".join(f"    {line}\n" for line in trace), end="")
    return different


def compared(name, play_both, show):
    """How many types differ each time that a script is played. What both ask is put in order by half a second without a word: on a busy
    machine a word may come later than that, so a script that differs is played again."""
    for turn in (1, 2, 3):
        different = compare(name, play_both(), show)
        if not different:
            return 0
        print(f"{name} differed in {different} (turn {turn} of 3)", flush=True)
    return different


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", help="the tidegate binary (default: the newest in target/); `envoy`: the oracle")
    parser.add_argument("--show", action="store_true", help="prints what was asked")
    parser.add_argument("--script", default="", help="only scripts whose name has this in it")
    options = parser.parse_args()
    environment.enter()
    oracle, subject = environment.oracle(), environment.subject(options.subject)
    different = 0

    def both(ask):
        """What both do, at the same time: for the most part they wait."""
        with tempfile.TemporaryDirectory() as directory, futures.ThreadPoolExecutor(2) as pool:
            places = [os.path.join(directory, side) for side in ("oracle", "subject")]
            for place in places:
                os.mkdir(place)
            return list(pool.map(ask, (oracle, subject), places))

    if options.script in "snapshots":
        program = build()
        for dialect in ("GRPC", "DELTA_GRPC"):
            ask = lambda binary, place, dialect=dialect: traces(run(binary, program, dialect, place))  # noqa: E731
            different += compared(dialect, lambda ask=ask: both(ask), options.show)
    program = build("./scripted", "scripted")
    for name, (script, dialects, source) in discovery_scripts.SCRIPTS.items():
        for dialect in dialects if options.script in name else ():
            by_chance = set()
            if source is discovery_scripts.own_streams:
                by_chance = {IN_ORDER} | ({"RouteConfiguration"} if "scopes" in name else set())

            def ask(binary, place, dialect=dialect, script=script, source=source, by_chance=by_chance):
                played = play(binary, program, dialect, place, script, source)
                return {kind: trace for kind, trace in played.items() if kind not in by_chance}

            different += compared(f"{name}, {dialect}:", lambda ask=ask: both(ask), options.show)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
