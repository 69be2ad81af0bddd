"""What updates cost: a control plane of our own making (loadtests/interop/updates, delta ADS) fills Envoy and tidegate with the
same, changes one thing at a time, and says how long each change took to be accepted and, for endpoints, to be served; then a
storm of 20 updates a second, half of them wrong, and 20 restarts of the control plane, under load, in which no request may
fail. It ends with 0 when the promises below hold for tidegate.

    python3 loadtests/updates.py                      # the newest tidegate in target/ beside Envoy; minutes
    python3 loadtests/updates.py --only tidegate --storm 60
"""

import argparse
import json
import os
import subprocess

from harness import environment

HERE = os.path.dirname(os.path.abspath(__file__))

# Clusters, hosts in each, route configurations (each of a filter chain of its own).
SIZES = [(1000, 100, 0), (10000, 1, 0), (100, 1, 10000)]

# One change to serving, in milliseconds, and what 10,000 clusters with virtual hosts may cost.
MOST_MILLISECONDS, MOST_SECONDS, MOST_MEGABYTES = 10, 1, 60


def build():
    """The program's binary, built once."""
    program = os.path.join(HERE, ".cache", "updates")
    go = environment.tool("go", "golang")
    subprocess.run([go, "build", "-o", program, "."], cwd=os.path.join(HERE, "interop", "updates"), check=True)
    return program


def run(program, proxy, *arguments):
    done = subprocess.run([program, "-proxy", proxy, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(program, proxies):
    """Prints a line a proxy and size; returns what tidegate does not keep."""
    broken = []
    print(f"{'':12}{'clusters':>9}{'hosts':>6}{'routes':>7}{'start s':>9}{'MB':>8}{'endpoint ms':>13}{'cluster ms':>12}"
          f"{'routes ms':>11}   (medians; CPU ms an update)")
    for clusters, hosts, configurations in SIZES:
        for name, proxy in proxies.items():
            seen = run(program, proxy, "-clusters", clusters, "-hosts", hosts, "-configurations", configurations)
            kinds = ["one_endpoint", "one_cluster"] + (["one_configuration"] if configurations else [])
            cpu = ", ".join(f"{seen[kind + '_cpu_ms']:.1f}" for kind in kinds)
            routes = f"{seen['one_configuration_ms']:.1f}" if configurations else "-"
            print(f"{name:12}{clusters:>9}{hosts:>6}{configurations:>7}{seen['start_seconds']:>9.2f}"
                  f"{seen['resident_megabytes']:>8.1f}{seen['one_endpoint_ms']:>13.1f}{seen['one_cluster_ms']:>12.1f}"
                  f"{routes:>11}   ({cpu})", flush=True)
            if name != "tidegate":
                continue
            broken += [f"{clusters} clusters: {kind} took {seen[kind + '_ms']:.1f} ms" for kind in kinds
                       if seen[kind + "_ms"] > MOST_MILLISECONDS]
            if clusters == 10000 and seen["start_seconds"] > MOST_SECONDS:
                broken.append(f"10,000 clusters took {seen['start_seconds']:.1f} s")
            if clusters == 10000 and seen["resident_megabytes"] > MOST_MEGABYTES:
                broken.append(f"10,000 clusters take {seen['resident_megabytes']:.0f} MB")
    return broken


def storm(program, proxies, seconds):
    broken = []
    for name, proxy in proxies.items():
        seen = run(program, proxy, "-clusters", 100, "-hosts", 3, "-storm", f"{seconds}s")
        for phase in ("quiet", "storm", "quiet_again", "restarts"):
            one = seen[phase]
            print(f"{name:12}{phase:12}{one['requests']:>8} requests{one['failed']:>8} failed   p99 {one['p99_ms']:.1f} ms"
                  f"   {one['first_failure']}", flush=True)
            if name == "tidegate" and one["failed"]:
                broken.append(f"{phase}: {one['failed']} requests failed")
    return broken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", help="the tidegate binary (default: the newest in target/)")
    parser.add_argument("--only", choices=["envoy", "tidegate"], help="one of both")
    parser.add_argument("--storm", type=int, default=20, help="how long each part of the storm lasts, in seconds; 0: none")
    parser.add_argument("--no-sizes", action="store_true", help="the storm alone")
    options = parser.parse_args()
    environment.enter()
    program = build()
    proxies = {"envoy": environment.oracle(), "tidegate": environment.subject(options.subject)}
    if options.only:
        proxies = {options.only: proxies[options.only]}
    broken = [] if options.no_sizes else measure(program, proxies)
    if options.storm:
        broken += storm(program, proxies, options.storm)
    print("\n".join(broken) or "every promise holds")
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
