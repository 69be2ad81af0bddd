"""A fleet of proxies, simulated in one process, on one `tidegate control`: how long a change of one cluster's endpoints takes to
reach the last of them, and what the control plane needs meanwhile. Each proxy is an aggregated delta stream of its own that has
all clusters and their endpoints. It ends with 0 when each of the changes reached the last within a second.

    python3 loadtests/fleet.py                          # 1,000 proxies, 5,000 clusters; an optimised build
    python3 loadtests/fleet.py --short                  # 100 proxies, 500 clusters, any build: the time is told and decides nothing
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

from control_plane import Control, ads, endpoints, typed
from harness import environment, process

PER_FILE = 50
CHANGES = 10

# How long a change may take until the last has it, in seconds; how long the short form waits at all.
MOST_SECONDS, PATIENCE = 1, 300


def put(directory, name, resources):
    beside = os.path.join(directory, ".new")
    with open(beside, "w") as file:
        json.dump({"resources": resources}, file)
    os.rename(beside, os.path.join(directory, name))


def name(number):
    return f"service-{number:05}.namespace.svc.cluster.local"


def assignments(first, port):
    return [typed("config.endpoint.v3.ClusterLoadAssignment", endpoints(name(number), port))
            for number in range(first, first + PER_FILE)]


def usage(pid):
    """CPU seconds and resident MiB of a process."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    with open(f"/proc/{pid}/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    ticks = os.sysconf("SC_CLK_TCK")
    return (int(fields[11]) + int(fields[12])) / ticks, int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024


def fleet_binary(given, subject):
    """The simulated proxies, built as the subject is: with the profile whose directory that is in."""
    if given:
        return given
    built = subject.parent.name
    profile = {"debug": "dev"}.get(built, built)
    subprocess.run(["cargo", "build", "-q", "--locked", "--profile", profile, "--workspace", "--example", "fleet"],
                   cwd=environment.REPOSITORY, check=True)
    return subject.parent / "examples" / "fleet"


def heard(proxies):
    """The next line of the simulated proxies; they do not wait for ever."""
    line = []
    reader = threading.Thread(target=lambda: line.append(proxies.stdout.readline()), daemon=True)
    reader.start()
    reader.join(PATIENCE)
    if not line or not line[0]:
        raise SystemExit("the proxies do not get everything" if proxies.poll() is None else "the simulated proxies ended")
    return json.loads(line[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", help="the tidegate binary (default: the newest in target/)")
    parser.add_argument("--fleet", help="the built example `fleet` of tidegate-control (default: it is built)")
    parser.add_argument("--proxies", type=int)
    parser.add_argument("--clusters", type=int, help="rounded down to a multiple of 50")
    parser.add_argument("--short", action="store_true", help="fewer of both; only whether everything arrives decides")
    options = parser.parse_args()
    binary = environment.subject(options.subject)
    fleet = fleet_binary(options.fleet, binary)
    options.proxies = options.proxies or (100 if options.short else 1000)
    clusters = (options.clusters or (500 if options.short else 5000)) // PER_FILE * PER_FILE
    ports = {key: process.free_port() for key in ("xds", "status")}
    with tempfile.TemporaryDirectory() as directory, open(os.path.join(directory, "log"), "w") as log:
        source = os.path.join(directory, "resources")
        os.mkdir(source)
        for first in range(0, clusters, PER_FILE):
            put(source, f"clusters-{first:05}.json", [
                typed("config.cluster.v3.Cluster", {"name": name(number), "connect_timeout": "1s", "type": "EDS",
                                                    "eds_cluster_config": {"eds_config": ads()}})
                for number in range(first, first + PER_FILE)])
            put(source, f"endpoints-{first:05}.json", assignments(first, 8080))
        control = Control(binary, source, ports, log)
        proxies = None
        try:
            start = time.monotonic()
            control.start()
            cpu, memory, _ = usage(control.process.pid)
            print(f"start: {time.monotonic() - start:.2f} s, {cpu:.2f} s of CPU, {memory:.0f} MiB with {clusters} clusters")
            proxies = subprocess.Popen([str(fleet), f"127.0.0.1:{ports['xds']}", str(options.proxies), str(clusters)],
                                       stdout=subprocess.PIPE, text=True)
            whole = heard(proxies)
            before, memory, peak = usage(control.process.pid)
            print(f"{options.proxies} proxies have everything after {whole['seconds']:.1f} s: {before - cpu:.1f} s of CPU,"
                  f" {memory:.0f} MiB, {peak:.0f} MiB at most", flush=True)
            took = []
            for change in range(CHANGES):
                first = change * PER_FILE % clusters
                resources = assignments(first, 8080)
                resources[0] = typed("config.endpoint.v3.ClusterLoadAssignment", endpoints(name(first), 9000 + change))
                written = time.time()
                put(source, f"endpoints-{first:05}.json", resources)
                took.append(heard(proxies)["at"] - written)
            after, memory, peak = usage(control.process.pid)
            print(f"a change of endpoints reached the last after {max(took):.2f} s at most, {sum(took) / len(took):.2f} s on"
                  f" average (looking at files included): {(after - before) / CHANGES:.2f} s of CPU each, {memory:.0f} MiB")
        finally:
            for child in (proxies, control.process):
                if child and child.poll() is None:
                    child.kill()
                    child.wait()
    if max(took) >= MOST_SECONDS and not options.short:
        raise SystemExit(f"a change reached the last after {max(took):.2f} s and not within {MOST_SECONDS} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
