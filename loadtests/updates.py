"""What updates cost: a control plane of our own making (loadtests/interop/updates, delta ADS) fills Envoy and tidegate with the
same, changes one thing at a time, and says how long each change took to be accepted and, for endpoints, to be served; then a
storm of 20 updates a second, half of them wrong, and 20 restarts of the control plane, under load, in which no request may
fail, and which may not make requests slow: storm and quiet take turns, and their p99 are compared turn by turn. It ends with 0
when the promises below hold for tidegate.

    python3 loadtests/updates.py                      # the newest tidegate in target/ beside Envoy; minutes
    python3 loadtests/updates.py --only tidegate --no-sizes
    python3 loadtests/updates.py --short              # any build, half a minute: times are told and decide nothing
"""

import argparse
import json
import os
import statistics
import subprocess

from harness import environment

HERE = os.path.dirname(os.path.abspath(__file__))

# Clusters, hosts in each, route configurations (each of a filter chain of its own).
SIZES = [(1000, 100, 0), (10000, 1, 0), (100, 1, 10000)]

# One change to serving, in milliseconds, and what 10,000 clusters with virtual hosts may cost.
MOST_MILLISECONDS, MOST_SECONDS, MOST_MEGABYTES = 10, 1, 60

# What p99 under the storm may be of p99 without.
MOST_SLOWER = 1.10

# The short form: sizes, seconds of storm, turns, restarts.
SHORT_SIZES, SHORT_STORM, SHORT_TURNS, SHORT_RESTARTS = [(100, 10, 20)], 4, 2, 5


def build():
    """The program's binary, built once."""
    program = os.path.join(HERE, ".cache", "updates")
    go = environment.tool("go", "golang")
    subprocess.run([go, "build", "-o", program, "."], cwd=os.path.join(HERE, "interop", "updates"), check=True)
    return program


def run(program, proxy, *arguments):
    done = subprocess.run([program, "-proxy", proxy, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(program, proxies, sizes):
    """Prints a line a proxy and size; returns what tidegate does not keep in time or memory."""
    broken = []
    print(f"{'':12}{'clusters':>9}{'hosts':>6}{'routes':>7}{'start s':>9}{'MB':>8}{'endpoint ms':>13}{'cluster ms':>12}"
          f"{'routes ms':>11}   (medians; CPU ms an update)")
    for clusters, hosts, configurations in sizes:
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


def slower(one, other):
    """By how much the p99 of one kind of turn is above that of the turns of the other before it: in half of the pairs it is less,
    in a quarter of them less than the second number."""
    ratios = [after / before for before, after in zip(other, one) if before] or [0]
    return statistics.median(ratios), statistics.quantiles(ratios, n=4)[0] if len(ratios) > 1 else ratios[0]


def storm(program, proxies, seconds, turns, restarts):
    """Prints a line a proxy and phase; returns which requests failed, what took too long, and what could not be told."""
    failed, slow, undecided = [], [], []
    for name, proxy in proxies.items():
        seen = run(program, proxy, "-clusters", 100, "-hosts", 3, "-storm", f"{seconds}s", "-turns", turns, "-restarts", restarts)
        for phase in ("quiet", "storm", "restarts"):
            one = seen[phase]
            print(f"{name:12}{phase:12}{one['requests']:>8} requests{one['failed']:>8} failed   p50"
                  f" {statistics.median(one['p50_ms']):.2f} ms   p99 {statistics.median(one['p99_ms']):.2f} ms"
                  f"   {one['first_failure']}", flush=True)
            if name == "tidegate" and one["failed"]:
                failed.append(f"{phase}: {one['failed']} requests failed")
        half, quarter = slower(seen["storm"]["p99_ms"], seen["quiet"]["p99_ms"])
        quiet = seen["quiet"]["p99_ms"]
        noise, _ = slower(quiet[1:], quiet[:-1])
        print(f"{name:12}{seen['updates']} updates: p99 of a turn with them {half:.2f} times that of the quiet one before"
              f" (in a quarter less than {quarter:.2f} times); from one quiet one to the next {noise:.2f} times", flush=True)
        # Where the machine does other things, too, turns differ by themselves: three of four have to say so.
        if name == "tidegate" and half > MOST_SLOWER:
            if quarter > 1:
                slow.append(f"p99 is {half:.2f} times what it is without updates")
            else:
                undecided.append("p99 under updates: turns differ by themselves; run it on a machine that does nothing else")
    return failed, slow, undecided


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", help="the tidegate binary (default: the newest in target/)")
    parser.add_argument("--only", choices=["envoy", "tidegate"], help="one of both")
    parser.add_argument("--storm", type=int, default=60, help="how many seconds of storm there are; 0: none")
    parser.add_argument("--no-sizes", action="store_true", help="the storm alone")
    parser.add_argument("--short", action="store_true", help="less of everything; only failed requests decide")
    options = parser.parse_args()
    environment.enter()
    program = build()
    proxies = {"envoy": environment.oracle(), "tidegate": environment.subject(options.subject)}
    if options.only:
        proxies = {options.only: proxies[options.only]}
    sizes = [] if options.no_sizes else SHORT_SIZES if options.short else SIZES
    seconds, turns, restarts = (SHORT_STORM, SHORT_TURNS, SHORT_RESTARTS) if options.short else (options.storm, 12, 20)
    slow = measure(program, proxies, sizes) if sizes else []
    broken, undecided = [], []
    if options.storm:
        broken, storm_slow, undecided = storm(program, proxies, seconds, turns, restarts)
        slow += storm_slow
    if options.short:
        undecided += [f"{what} (the short form does not say)" for what in slow]
    else:
        broken += slow
    for what in undecided:
        print(f"not decided: {what}")
    print("\n".join(broken) or ("no request failed" if undecided else "every promise holds"))
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
