"""Starts the proxies of the bench, each pinned to one core, and reads what they cost from /proc.

A peer is a command and a configuration for the same work; this file knows how to start each, not what load it gets.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

from harness.process import free_port

PROXY_CORE, LOAD_CORE = 0, 1


class Process:
    """A pinned child process; `with` ends it."""

    def __init__(self, command, core, directory, name):
        self.output = directory / f"{name}.out"
        with open(self.output, "wb") as output:
            self.child = subprocess.Popen(
                ["taskset", "-c", str(core), *map(str, command)], stdout=output, stderr=subprocess.STDOUT, cwd=directory, start_new_session=True
            )
        self.name = name

    def stop(self):
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if self.child.poll() is not None:
                return
            self.child.send_signal(sign)
            try:
                self.child.wait(3)
            except subprocess.TimeoutExpired:
                continue

    def pids(self):
        """The process and its children (workers)."""
        children = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text().split()
        return [self.child.pid, *map(int, children)]

    def cpu_seconds(self):
        """CPU time of all threads so far; nanoseconds where the kernel counts them, else clock ticks."""
        total = 0
        for pid in self.pids():
            for task in Path(f"/proc/{pid}/task").iterdir():
                try:
                    total += int((task / "schedstat").read_text().split()[0]) / 1e9
                except (FileNotFoundError, IndexError):
                    fields = (task / "stat").read_text().rpartition(")")[2].split()
                    total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    def memory_mb(self, field="VmRSS"):
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith(field + ":"):
                    total += int(line.split()[1])
        return total / 1024

    def wait_until(self, ready, seconds=20):
        end = time.monotonic() + seconds
        while self.child.poll() is None and time.monotonic() < end:
            if ready():
                return
            time.sleep(0.005)
        what = "is not ready" if self.child.poll() is None else "ended"
        raise SystemExit(f"{self.name} {what}: {self.output.read_text(errors='replace')[-1500:]}")


def compile_upstream(cache):
    """The upstream is C, compiled once."""
    source = Path(__file__).parent / "upstream.c"
    binary = cache / "bench-upstream"
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        compiler = next((name for name in ("cc", "gcc", "clang") if subprocess.run(["which", name], capture_output=True).returncode == 0), None)
        if not compiler:
            raise SystemExit("missing: a C compiler for the bench's upstream (Debian: apt-get install gcc)")
        subprocess.run([compiler, "-O2", "-o", binary, source], check=True)
    return binary


def start_upstream(cache, directory):
    port = free_port()
    return Process([compile_upstream(cache), port], LOAD_CORE, directory, "upstream"), port
