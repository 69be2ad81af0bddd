#!/usr/bin/env python3
"""What a request costs through tidegate, beside Envoy on the same configuration file.

Each proxy has one worker on one core; load and upstream run on another. Rounds are interleaved, so that what disturbs the
machine disturbs all. Ends with 1 when a ratio that the project promises is missed.
"""

import argparse
import fnmatch
import json
import os
import shutil
import ssl
import sys
import time
import urllib.request

from harness import environment

environment.enter()

from benchmark import cases as bench_cases, load, report  # noqa: E402
from benchmark.peers import PROXY_CORE, Process, start_upstream  # noqa: E402
from harness import certificates  # noqa: E402
from harness.process import free_port, listens  # noqa: E402

FLAGS = ["--concurrency", "1", "-l", "warning", "--disable-hot-restart"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", help="names or globs (default: all)")
    parser.add_argument("--subject", help="the tidegate binary (default: target/release/tidegate); `none` measures Envoy alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--json", help="writes all rounds to this file")
    parser.add_argument("--no-results", action="store_true", help="leaves loadtests/RESULTS.md as it is (also when some cases are left out)")
    parser.add_argument("--no-log", action="store_true", help="no access log on any peer (not what the promised ratios are measured with)")
    parser.add_argument("--list", action="store_true")
    return parser.parse_args()


def binaries(given):
    found = {"envoy": environment.oracle()}
    if given != "none":
        release = environment.REPOSITORY / "target" / "release" / "tidegate"
        found["tidegate"] = environment.subject(given or (release if release.exists() else None))
    return found


def start(peer, binary, case, upstream_port, directory, logs):
    """(process, port it listens on), once it has answered the case's request with the right bytes."""
    own = directory / peer
    own.mkdir()
    ports = {"admin": free_port(), "listen": free_port(), "up": upstream_port}
    config = own / "config.json"
    certificate = certificates.own_signed(own) if case.tls else None
    config.write_text(json.dumps(bench_cases.envoy_config(case, ports, own / "access.log" if logs else None, certificate)))
    process = Process([binary, "-c", config, *FLAGS], PROXY_CORE, own, peer)
    process.wait_until(lambda: listens(ports["listen"]))
    process.start_mb = process.memory_mb()
    verify(ports["listen"], case, peer)
    return process, ports["listen"]


def verify(port, case, peer):
    scheme, anyone = ("https", ssl._create_unverified_context()) if case.tls else ("http", None)
    body = urllib.request.urlopen(f"{scheme}://127.0.0.1:{port}{case.path}", timeout=5, context=anyone).read()
    if body != b"x" * case.size:
        raise load.BadAnswers(f"{peer} answered {len(body)} bytes to {case.path}: {body[:80]!r}")


def measure(case, peers, options, directory):
    """({peer: [round]}, {peer: memory})."""
    running = {}
    upstream, upstream_port = start_upstream(environment.CACHE, directory)
    try:
        for peer, binary in peers.items():
            running[peer] = start(peer, binary, case, upstream_port, directory, not options.no_log)
        rounds = {peer: [] for peer in peers}
        for number in range(options.rounds + 1):
            for peer, (process, port) in running.items():
                before = process.cpu_seconds()
                result = case.run(port, 1 if number == 0 else options.seconds, directory)
                result["cpu_us"] = (process.cpu_seconds() - before) / result["requests"] * 1e6
                verify(port, case, peer)
                if number:  # the first is the warm-up
                    rounds[peer].append(result)
                    print(f"  {case.name} round {number} {peer}: {result['cpu_us']:.2f} us, {result['rate']:.0f}/s", file=sys.stderr, flush=True)
        memory = {peer: {"start_mb": process.start_mb, "peak_mb": process.memory_mb("VmHWM")} for peer, (process, _) in running.items()}
        return rounds, memory
    finally:
        for process, _ in running.values():
            process.stop()
        upstream.stop()


def main():
    options = arguments()
    chosen = [case for case in bench_cases.CASES if not options.cases or any(fnmatch.fnmatch(case.name, one) for one in options.cases)]
    if options.list or not chosen:
        for case in bench_cases.CASES:
            print(f"{case.name:16} {case.what}")
        return 0 if options.list else 2
    environment.tool("wrk", "wrk")
    environment.tool("h2load", "nghttp2-client")
    environment.tool("taskset", "util-linux")
    environment.tool("openssl", "openssl")
    peers, summaries, everything = binaries(options.subject), [], {}
    for case in chosen:
        directory = environment.CACHE / f"bench-{os.getpid()}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        begin = time.monotonic()
        rounds, memory = measure(case, peers, options, directory)
        summaries.append((case, report.summarise(case, rounds, memory)))
        everything[case.name] = {"rounds": rounds, "memory": memory, "seconds": time.monotonic() - begin}
        shutil.rmtree(directory, ignore_errors=True)
    table = report.lines(summaries)
    print(report.text(table))
    if options.json:
        with open(options.json, "w") as out:
            json.dump(everything, out, indent=1)
    if not options.no_results and not options.no_log and len(chosen) == len(bench_cases.CASES) and "tidegate" in peers:
        results = environment.LOADTESTS / "RESULTS.md"
        results.write_text(report.markdown(table, report.commit(environment.REPOSITORY), options.seconds, options.rounds, chosen))
    return 1 if any("MISSED" in cell for row in table for cell in row) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except load.BadAnswers as error:
        sys.exit(f"wrong answers: {error}")
