"""Runs wrk, h2load or openssl on the load's core and reads their results. It judges only whether every answer was a whole 2xx."""

import json
import re
import subprocess
from pathlib import Path

from .peers import LOAD_CORE

SCRIPT = """
{request}
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('RESULT {{"requests": %d, "bytes": %d, "micros": %d, "bad": %d, "p50": %d, "p99": %d, "p999": %d}}\\n',
    summary.requests, summary.bytes, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"""


class BadAnswers(Exception):
    """A peer did not answer every request with a whole 2xx: its speed means nothing."""


def wrk(url, connections, seconds, directory, request="", least_bytes=0):
    script = Path(directory) / "wrk.lua"
    script.write_text(SCRIPT.format(request=request))
    command = ["taskset", "-c", str(LOAD_CORE), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", script, url]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=seconds + 60)
    line = re.search(r"RESULT (.*)", done.stdout)
    if not line:
        raise BadAnswers(f"wrk: {done.stdout} {done.stderr}")
    result = json.loads(line[1])
    if result["bad"] or result["requests"] == 0 or result["bytes"] < result["requests"] * least_bytes:
        raise BadAnswers(f"wrk: {done.stdout}")
    return {
        "requests": result["requests"],
        "rate": result["requests"] / result["micros"] * 1e6,
        "p50_ms": result["p50"] / 1000,
        "p99_ms": result["p99"] / 1000,
        "p999_ms": result["p999"] / 1000,
    }


def handshakes(port, seconds, version=(), at_once=4):
    """New connections, each with a full handshake and nothing else. How long one takes is not told."""
    command = ["taskset", "-c", str(LOAD_CORE), "openssl", "s_time", "-connect", f"127.0.0.1:{port}", "-new", "-time", str(seconds), *version]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(at_once)]
    said = [one.communicate(timeout=seconds + 60)[0] for one in running]
    counts = [re.search(r"(\d+) connections in \d+ real seconds", text) for text in said]
    if not all(counts) or any(one.returncode for one in running):
        raise BadAnswers(f"openssl s_time: {said}")
    made = sum(int(count[1]) for count in counts)
    return {"requests": made, "rate": made / seconds, "p50_ms": float("nan"), "p99_ms": float("nan"), "p999_ms": float("nan")}


def h2load(url, connections, streams, seconds, directory, extra=(), least_bytes=0):
    """HTTP/2 with prior knowledge; percentiles come from its log of every request."""
    log = Path(directory) / "h2load.log"
    log.unlink(missing_ok=True)
    command = ["taskset", "-c", str(LOAD_CORE), "h2load", "-t1", f"-c{connections}", f"-m{streams}", "-D", str(seconds), f"--log-file={log}", *extra, url]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=seconds + 60)
    counts = re.search(r"requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", done.stdout)
    traffic = re.search(r"\((\d+)\) data", done.stdout)
    if not counts or int(counts[4]) == 0 or int(counts[5]) or int(traffic[1]) < int(counts[4]) * least_bytes:
        raise BadAnswers(f"h2load: {done.stdout} {done.stderr}")
    times = sorted(int(line.split("\t")[2]) for line in log.open() if line.count("\t") == 2)
    log.unlink()
    return {
        "requests": int(counts[4]),
        "rate": int(counts[4]) / seconds,
        **{name: times[min(len(times) - 1, int(len(times) * part))] / 1000 for name, part in (("p50_ms", 0.5), ("p99_ms", 0.99), ("p999_ms", 0.999))},
    }
