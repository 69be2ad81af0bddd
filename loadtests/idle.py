#!/usr/bin/env python3
"""What a connection costs that waits: resident memory of tidegate and Envoy with 2,000 of them, over HTTP/1 and over TLS, before and
after a request of each. Ends with 1 when tidegate's takes more than is promised.
"""

import argparse
import json
import os
import resource
import shutil
import socket
import ssl
import sys
import time

from harness import environment

environment.enter()

from benchmark import cases  # noqa: E402
from benchmark.peers import PROXY_CORE, Process, start_upstream  # noqa: E402
from harness import certificates  # noqa: E402
from harness.process import free_port, listens  # noqa: E402

CONNECTIONS = 2000
# KiB of a connection that has had a request. A connection over TLS aims at 10: rustls keeps 4 KiB to read into.
MOST = {"http/1": 5, "tls": 13}
FLAGS = ["--concurrency", "1", "-l", "warning", "--disable-hot-restart"]


def connect(port, tls):
    plain = socket.create_connection(("127.0.0.1", port))
    return tls.wrap_socket(plain) if tls else plain


def ask(connection, path):
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
    received = b""
    while not received.endswith(b"x" * 100):
        piece = connection.recv(4096)
        if not piece:
            raise SystemExit(f"a connection was closed: {received!r}")
        received += piece


def grown(process, before):
    """KiB for each connection, once it is at rest."""
    time.sleep(2)
    return (process.memory_mb("RssAnon") - before) * 1024 / CONNECTIONS


def measure(binary, kind, directory, upstream):
    case = next(case for case in cases.CASES if case.name == ("tls-kept" if kind == "tls" else "h1-100"))
    directory.mkdir(parents=True)
    ports = {"admin": free_port(), "listen": free_port(), "up": upstream}
    certificate = certificates.own_signed(directory) if case.tls else None
    config = directory / "config.json"
    config.write_text(json.dumps(cases.envoy_config(case, ports, directory / "access.log", certificate)))
    process = Process([binary, "-c", config, *FLAGS], PROXY_CORE, directory, "proxy")
    try:
        process.wait_until(lambda: listens(ports["listen"]))
        tls = ssl._create_unverified_context() if case.tls else None
        # What every process makes once, and what a start needed and gives back.
        for _ in range(100):
            with connect(ports["listen"], tls) as first:
                ask(first, case.path)
        time.sleep(5)
        before = process.memory_mb("RssAnon")
        open_ones = [connect(ports["listen"], tls) for _ in range(CONNECTIONS)]
        silent = grown(process, before)
        for connection in open_ones:
            ask(connection, case.path)
        asked = grown(process, before)
        for connection in open_ones:
            connection.close()
        return silent, asked
    finally:
        process.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--subject", help="the tidegate binary (default: target/release/tidegate)")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    release = environment.REPOSITORY / "target" / "release" / "tidegate"
    binaries = {"envoy": environment.oracle(), "tidegate": environment.subject(options.subject or (release if release.exists() else None))}
    directory = environment.CACHE / f"idle-{os.getpid()}"
    directory.mkdir(parents=True)
    upstream, port = start_upstream(environment.CACHE, directory)
    missed = []
    try:
        for kind, most in MOST.items():
            for name, binary in binaries.items():
                silent, asked = measure(binary, kind, directory / f"{kind.replace('/', '')}-{name}", port)
                print(f"{kind:8}{name:10}{silent:6.1f} KiB without a request, {asked:5.1f} KiB after one", flush=True)
                if name == "tidegate" and asked > most:
                    missed.append(f"{kind}: {asked:.1f} KiB a connection, promised {most}")
    finally:
        upstream.stop()
        shutil.rmtree(directory, ignore_errors=True)
    print("\n".join(missed) or "every promise holds")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
