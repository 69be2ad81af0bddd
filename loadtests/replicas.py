"""Three replicas of `tidegate control` over three members of etcd, and proxies that have all replicas as endpoints of their
control plane. Replicas and members are killed and stopped one after another, with changes before, meanwhile and after, while
requests run: none may fail, nobody may be served anything but what was meant, and a change through one replica must reach the
proxies of the others. It ends with 0 when all holds. Needs etcd (Debian: etcd-server).

    python3 loadtests/replicas.py                    # the newest tidegate in target/
"""

import argparse
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

from harness import environment, process

API = "type.googleapis.com/envoy."
PATIENCE = 60
MEMBERS, REPLICAS, PROXIES = 3, 3, 4


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def endpoints(name, *ports):
    hosts = [{"endpoint": {"address": address(port)}} for port in ports]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]}


ADS = {"ads": {}, "resource_api_version": "V3"}


def bootstrap(number, dialect, replicas, admin, listener):
    """The listener is the proxy's own; everything else comes from the control plane. Whoever does not answer is left: without
    a keepalive nobody would know that a replica stands still."""
    http2 = {"@type": API + "extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {
        "http2_protocol_options": {"connection_keepalive": {"interval": "1s", "timeout": "1s"}}}}
    control = {"name": "control", "connect_timeout": "1s", "type": "STATIC",
               "load_assignment": endpoints("control", *replicas),
               "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2}}
    manager = {"@type": API + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
               "stat_prefix": "main", "rds": {"config_source": ADS, "route_config_name": "routes"},
               "http_filters": [{"name": "envoy.filters.http.router",
                                 "typed_config": {"@type": API + "extensions.filters.http.router.v3.Router"}}]}
    return {"node": {"id": f"node-{number}", "cluster": "test"}, "admin": {"address": address(admin)},
            "dynamic_resources": {"cds_config": ADS, "ads_config": {
                "api_type": dialect, "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "control"}}]}},
            "static_resources": {"clusters": [control], "listeners": [{
                "name": "main", "address": address(listener),
                "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}]}}


def cluster(name):
    return {"@type": API + "config.cluster.v3.Cluster", "name": name, "connect_timeout": "1s", "type": "EDS",
            "eds_cluster_config": {"eds_config": ADS}}


def assignment(name, port):
    return {"@type": API + "config.endpoint.v3.ClusterLoadAssignment", **endpoints(name, port)}


def routes(version, target):
    return {"@type": API + "config.route.v3.RouteConfiguration", "name": "routes",
            "response_headers_to_add": [{"header": {"key": "x-version", "value": version}}],
            "virtual_hosts": [{"name": "all", "domains": ["*"],
                               "routes": [{"match": {"prefix": "/"}, "route": {"cluster": target}}]}]}


def until(what, holds):
    """Waits until it holds; returns how long that took."""
    start = time.monotonic()
    while not holds():
        if time.monotonic() - start > PATIENCE:
            raise SystemExit(f"never: {what}")
        time.sleep(0.02)
    return time.monotonic() - start


class Started:
    """A process on the same ports each time it is started."""

    def __init__(self, command, log):
        self.command, self.log, self.process = command, log, None

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)

    def send(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def end(self):
        if self.process and self.process.poll() is None:
            self.kill()


class Etcd:
    def __init__(self, binary, directory, log):
        ports = [(process.free_port(), process.free_port()) for _ in range(MEMBERS)]
        self.addresses = [f"127.0.0.1:{client}" for client, _ in ports]
        everybody = ",".join(f"m{number}=http://127.0.0.1:{peer}" for number, (_, peer) in enumerate(ports))
        self.members = []
        for number, (client, peer) in enumerate(ports):
            client, peer = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
            self.members.append(Started([
                binary, "--name", f"m{number}", "--data-dir", os.path.join(directory, f"etcd-{number}"),
                "--log-level", "error", "--listen-client-urls", client, "--advertise-client-urls", client,
                "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", everybody], log))

    def url(self):
        return f"etcd://{','.join(self.addresses)}/mesh"


class Replica(Started):
    def __init__(self, binary, etcd, log):
        self.port, self.admin = process.free_port(), process.free_port()
        super().__init__([str(binary), "control", "--store", etcd.url(), "--listen", f"127.0.0.1:{self.port}",
                          "--admin", f"127.0.0.1:{self.admin}", "--bootstrap-cluster", "control"], log)

    def status(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/status", timeout=5) as answer:
                return json.load(answer)
        except OSError:
            return None

    def nodes(self):
        """Who is connected and has all that there is."""
        def done(client):
            return all(client["resources"][state] == 0 for state in ("not_sent", "unanswered", "refused"))
        status = self.status()
        return {client["node"] for client in status["clients"] if done(client)} if status else set()

    def version(self):
        status = self.status()
        return status and status["groups"][0]["version"]

    def follows(self):
        """The member of etcd that it follows; none while it follows nobody."""
        status = self.status()
        return status["store"]["etcd"] if status and not status["store"]["fault"] else None

    def apply(self, *resources):
        """One change of several resources. Returns the status and what is said with it."""
        body = json.dumps({"resources": resources}).encode()
        kind = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin}/resources", body, kind, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


class Traffic:
    """Requests one after another on new connections; what fails, or is not of a version that is meant now, is counted."""

    def __init__(self, number, port, meant):
        self.number, self.port, self.meant = number, port, meant
        self.sent, self.wrong, self.version, self.going = 0, [], None, True
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while self.going:
            meant = list(self.meant)
            self.sent += 1
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                connection.request("GET", "/")
                answer = connection.getresponse()
                answer.read()
                connection.close()
                self.version = answer.headers["x-version"]
                if answer.status != 200 or self.version not in meant + self.meant:
                    self.wrong.append(f"node-{self.number}: {answer.status}, version {self.version} and not {self.meant}")
            except OSError as error:
                self.wrong.append(f"node-{self.number}: {error}")
            time.sleep(0.004)


class Mesh:
    """All of it together."""

    def __init__(self, binary, etcd_binary, directory):
        self.binary, self.directory = binary, directory
        self.log = open(os.path.join(directory, "log"), "w")
        files = os.path.join(directory, "www")
        os.mkdir(files)
        self.upstreams = [process.free_port() for _ in range(2)]
        self.servers = [Started([sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1",
                                 "--directory", files], subprocess.DEVNULL) for port in self.upstreams]
        self.etcd = Etcd(etcd_binary, directory, self.log)
        self.replicas = [Replica(binary, self.etcd, self.log) for _ in range(REPLICAS)]
        self.proxies, self.traffic, self.meant = [], [], ["1"]
        self.reached, self.number = [], 1

    def start(self):
        for child in (*self.servers, *self.etcd.members, *self.replicas):
            child.start()
        for replica in self.replicas:
            until("a replica serves", replica.status)
        self.apply(self.replicas[0], cluster("a"), assignment("a", self.upstreams[0]), routes("1", "a"))
        for number in range(PROXIES):
            admin, listener = process.free_port(), process.free_port()
            # Each begins with another replica.
            ports = [self.replicas[(number + offset) % REPLICAS].port for offset in range(REPLICAS)]
            config = os.path.join(self.directory, f"bootstrap-{number}.json")
            with open(config, "w") as file:
                json.dump(bootstrap(number, ("DELTA_GRPC", "GRPC")[number % 2], ports, admin, listener), file)
            proxy = Started([str(self.binary), "-c", config, "--concurrency", "1"], self.log)
            proxy.start()
            proxy.admin = admin
            self.proxies.append(proxy)
            until("a proxy serves", lambda port=listener: reachable(port))
            self.traffic.append(Traffic(number, listener, self.meant))
        self.served("1")

    def apply(self, replica, *resources):
        code, said = replica.apply(*resources)
        if code != 200:
            raise SystemExit(f"a change: {code} {said}")

    def served(self, version):
        return until(f"version {version} at every proxy", lambda: all(one.version == version for one in self.traffic))

    def change(self, replica):
        """Through one replica: a cluster, its endpoints, and routes that move to it, in one step."""
        self.number += 1
        version, target = str(self.number), "ab"[self.number % 2]
        self.meant.append(version)
        self.apply(replica, cluster(target), assignment(target, self.upstreams[self.number % 2]), routes(version, target))
        self.reached.append(self.served(version))
        # What was before is meant no longer.
        del self.meant[:-1]

    def moved(self, replicas):
        """Every proxy is with one of these, and has all that there is; returns how long that took."""
        wanted = {f"node-{number}" for number in range(PROXIES)}
        return until("every proxy is with another replica", lambda: set().union(*(one.nodes() for one in replicas)) >= wanted)

    def served_now(self):
        """What every proxy has: versions, and how often something changed."""
        names = ("cluster_manager.cluster_added", "cluster_manager.cluster_modified", "cluster_manager.cluster_removed",
                 "cluster_manager.cds.version", "http.main.rds.routes.version", "http.main.rds.routes.config_reload")
        found = []
        for proxy in self.proxies:
            with urllib.request.urlopen(f"http://127.0.0.1:{proxy.admin}/stats", timeout=10) as answer:
                lines = dict(line.rsplit(": ", 1) for line in answer.read().decode().splitlines() if ": " in line)
            found.append({name: lines[name] for name in names})
        return found

    def unchanged(self, what, do):
        """Does what must change nothing at any proxy."""
        before = self.served_now()
        done = do()
        after = self.served_now()
        if before != after:
            raise SystemExit(f"{what}: it changed what proxies have: {before} -> {after}")
        return done

    def check(self, step):
        wrong = [text for one in self.traffic for text in one.wrong]
        sent = sum(one.sent for one in self.traffic)
        if wrong:
            raise SystemExit(f"{step}: {len(wrong)} of {sent} requests: {wrong[:3]}")
        print(f"ok  {step} ({sent} requests so far, none failed)", flush=True)

    def end(self):
        for one in self.traffic:
            one.going = False
        for child in (*self.proxies, *self.replicas, *self.etcd.members, *self.servers):
            child.end()
        self.log.close()


def reachable(port):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False


def same(replicas):
    versions = {replica.version() for replica in replicas}
    return len(versions) == 1 and None not in versions


def by_proxies(replicas):
    """Those with the most proxies first: it is they that are to be lost."""
    return sorted(replicas, key=lambda replica: -len(replica.nodes()))


def run(mesh):
    mesh.start()
    until("the replicas agree", lambda: same(mesh.replicas))
    for replica in mesh.replicas:
        mesh.change(replica)
    mesh.check("a change through each replica reached all proxies")
    one, two, three = by_proxies(mesh.replicas)

    def kill():
        if not one.nodes():
            raise SystemExit("no proxy is with the replica that is to be killed")
        one.kill()
        return mesh.moved([two, three])
    took = mesh.unchanged("a replica is killed", kill)
    mesh.check(f"a replica was killed: its proxies moved within {took:.1f} s, and nothing changed for them")
    mesh.change(two)
    two, three = by_proxies([two, three])

    def stop():
        two.send(signal.SIGSTOP)
        return mesh.moved([three])
    took = mesh.unchanged("a replica stands still", stop)
    mesh.check(f"another stood still: its proxies moved within {took:.1f} s, and nothing changed for them")
    mesh.change(three)
    one.start()
    until("the first is back", one.status)
    mesh.change(one)
    two.send(signal.SIGCONT)
    took = until("the one that stood still has caught up", lambda: same(mesh.replicas))
    mesh.check(f"both are back; the one that stood still had caught up within {took:.1f} s")
    mesh.change(two)

    followed = one.follows()
    member = mesh.etcd.members[mesh.etcd.addresses.index(followed)]

    def stop_member():
        member.send(signal.SIGSTOP)
        return until("nobody follows the member that stands still",
                     lambda: all(replica.follows() not in (None, followed) for replica in mesh.replicas))
    took = mesh.unchanged("a member of etcd stands still", stop_member)
    mesh.check(f"a member of etcd stood still: after {took:.1f} s no replica followed it")
    mesh.change(two)
    mesh.change(three)
    member.kill()
    mesh.change(one)
    mesh.check("it was killed: changes went on through every replica")

    other = next(each for each in mesh.etcd.members if each is not member)
    three, one, two = by_proxies(mesh.replicas)

    def no_majority():
        other.kill()
        until("the replicas know", lambda: all(
            (status := replica.status()) and status["store"]["fault"] for replica in mesh.replicas))
        code, said = two.apply(cluster("never"), assignment("never", mesh.upstreams[0]))
        if code != 503:
            raise SystemExit(f"a change without etcd: {code} {said}")
        # Proxies that move now are served, too.
        three.kill()
        mesh.moved([one, two])
    mesh.unchanged("etcd has no majority", no_majority)
    mesh.check("etcd lost its majority, and a replica was killed: changes were refused, proxies moved, nothing changed for them")
    for child in (three, other, member):
        child.start()
    until("etcd and all replicas are back", lambda: all(replica.follows() for replica in mesh.replicas) and same(mesh.replicas))
    for replica in mesh.replicas:
        mesh.change(replica)
    mesh.check("all are back: changes through every replica reach all proxies")
    print(f"    of {len(mesh.reached)} changes the slowest was served by every proxy {max(mesh.reached):.2f} s after it was made")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", help="the tidegate binary (default: the newest in target/)")
    options = parser.parse_args()
    environment.enter()
    binary = environment.subject(options.subject)
    etcd = shutil.which("etcd")
    if not etcd:
        raise environment.Missing("etcd (Debian: apt-get install etcd-server)")
    with tempfile.TemporaryDirectory() as directory:
        mesh = Mesh(binary, etcd, directory)
        try:
            run(mesh)
        except BaseException:
            mesh.log.flush()
            with open(mesh.log.name) as lines:
                print("".join(lines.readlines()[-60:]), file=sys.stderr)
            raise
        finally:
            mesh.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
