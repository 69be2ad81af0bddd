#!/usr/bin/env python3
"""A certificate is changed 60 times in a minute, every fifth time to junk, while requests run on kept and on new connections, over
HTTP/1 and HTTP/2: by an SDS file that is moved into place, and by SDS over gRPC on a unix socket.

No request may fail, each good certificate must be presented within a second, junk must leave the last good one and be counted,
logged and not be told by /certs, and kept connections must stay. Envoy's figures stand beside, as information. Ends with 0 when all holds.

    python3 loadtests/rotation.py                        # the newest tidegate in target/
    python3 loadtests/rotation.py --short                # fifteen changes, for any build
    python3 loadtests/rotation.py --subject envoy        # Envoy alone, judged
"""

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from harness import environment

environment.enter()

from harness import certificates, process, upstream_xds  # noqa: E402
from harness.script import write_file  # noqa: E402
from harness.template import bootstrap  # noqa: E402
from harness.tls_load import Load  # noqa: E402

SECRET = "rotating"
KIND = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
INTERVAL = WITHIN = 1.0
EVERY = 5  # so often comes junk
REQUESTS = 10_000 / 60  # for each change


class Certificates:
    """The pairs of a run: number -> (chain, key) as PEM text; junk has a number, too, by which it would be known."""

    def __init__(self, directory, changes):
        self.directory = certificates.authority(directory / "certs", ())
        self.pairs = [self._make(number) for number in range(changes + 1)]

    def _make(self, number):
        certificates.sign(self.directory, f"c{number}", f"DNS:example.com,DNS:r{number}.test")
        return [(self.directory / f"c{number}.{kind}").read_text() for kind in ("crt", "key")]

    def shown(self, number):
        """What is put at change `number`: a good pair, or one of three kinds of junk."""
        chain, key = self.pairs[number]
        kinds = [(chain, self.pairs[0][1]), (chain[: len(chain) // 2], key), (chain, "no key")]
        return kinds[number // EVERY % 3] if is_junk(number) else (chain, key)


def is_junk(number):
    return number > 0 and number % EVERY == 0


class FromFile:
    """The secret in a file that is moved into place."""

    def __init__(self, directory):
        self.directory = directory
        self.source = {"path_config_source": {"path": str(directory / "sds.json")}, "resource_api_version": "V3"}
        self.clusters = {}

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    def put(self, chain, key):
        pair = {"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}}
        write_file(self.directory, "sds.json", json.dumps({"resources": [{"@type": KIND, "name": SECRET, "tls_certificate": pair}]}))


class FromStream:
    """The secret from a control plane on a unix socket."""

    def __init__(self, directory):
        self.path, self.plane = directory / "sds.sock", upstream_xds.ControlPlane({})
        services = {"grpc_services": [{"envoy_grpc": {"cluster_name": "control"}}]}
        self.source = {"api_config_source": {"api_type": "GRPC", "transport_api_version": "V3", **services}, "resource_api_version": "V3"}
        http2 = {"@": "upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}}}
        endpoint = {"endpoint": {"address": {"pipe": {"path": str(self.path)}}}}
        self.clusters = {"control": {
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
            "load_assignment": {"cluster_name": "control", "endpoints": [{"lb_endpoints": [endpoint]}]}}}

    async def __aenter__(self):
        async def serve(reader, writer):
            try:
                await self.plane.serve(reader, writer)
            except (ConnectionError, asyncio.CancelledError):
                pass  # The proxy is gone.

        self.server = await asyncio.start_unix_server(serve, self.path)
        return self

    async def __aexit__(self, *_):
        self.server.close()

    def put(self, chain, key):
        self.plane.put(SECRET, upstream_xds.certificate(SECRET, chain, key))


def configuration(source, ports):
    common = {"alpn_protocols": ["h2", "http/1.1"], "tls_certificate_sds_secret_configs": [{"name": SECRET, "sds_config": source.source}]}
    socket = {"name": "tls", "typed_config": {"@": "transport_sockets.tls.v3.DownstreamTlsContext", "common_tls_context": common}}
    return bootstrap({
        "upstreams": {}, "clusters": source.clusters,
        "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "served"}}}],
        "hcm": {"access_log": []},
        "listener": {"filter_chains": [{"filters": [{"hcm": {}}], "transport_socket": socket}]}}, ports)


class Run:
    """One proxy through all changes; what was seen is for `report`."""

    def __init__(self, changes):
        self.changes, self.put_at, self.told = changes, {}, {}

    async def go(self, binary, kind, directory):
        pairs = Certificates(directory, self.changes)
        ports = {"admin": process.free_port(), "listen": process.free_port()}
        async with kind(directory) as source:
            source.put(*pairs.shown(0))
            (directory / "config.json").write_text(json.dumps(configuration(source, ports)))
            async with process.Proxy(binary, directory / "config.json", ports["admin"], directory, concurrency=2) as proxy:
                async with Load(ports["listen"], pairs.directory / "ca.crt") as self.load:
                    begun = time.monotonic()
                    await self._change(proxy, source, pairs)
                    self.seconds = time.monotonic() - begun
                self.counted = await self._counted(proxy)
                self.said = [line for line in proxy.output.read_text(errors="replace").splitlines() if "rejected" in line]

    async def _change(self, proxy, source, pairs):
        await asyncio.sleep(INTERVAL / 2)  # the first certificate has its time, too
        for number in range(1, self.changes + 1):
            due = time.monotonic() + INTERVAL
            source.put(*pairs.shown(number))
            self.put_at[number] = time.monotonic()
            await asyncio.sleep(INTERVAL * 0.9)
            self.told[number] = set(re.findall(r"\br(\d+)\.test", (await proxy.admin("/certs"))[2]))
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        end = time.monotonic() + 60
        while not self.enough() and time.monotonic() < end and not self.load.failures:
            await asyncio.sleep(0.1)

    def enough(self):
        """Of all requests, and of those on either kind of connection."""
        wanted = self.changes * REQUESTS
        return self.load.on_kept + self.load.on_new >= wanted and min(self.load.on_kept, self.load.on_new) >= wanted / 10

    async def _counted(self, proxy):
        """How often an update was refused, or failed before it could be; the last may still be on its way."""
        for _ in range(50):
            stats = await proxy.stats()
            found = {name: value for name, value in stats.items() if SECRET in name and re.search(r"update_(rejected|failure|success)$", name)}
            if sum(value for name, value in found.items() if not name.endswith("success")) >= self.changes // EVERY:
                break
            await asyncio.sleep(0.1)
        return found

    def delays(self):
        """Seconds from each good certificate's coming to the end of the first handshake that it was presented in."""
        first = {}
        for handshake in sorted(self.load.handshakes, key=lambda one: one.done):
            first.setdefault(number_of(handshake), handshake.done)
        return {number: first.get(number, float("inf")) - at for number, at in self.put_at.items() if not is_junk(number)}

    def broken(self):
        """What does not hold."""
        load, junk = self.load, [number for number in self.put_at if is_junk(number)]
        yield from (f"failed: {one}" for one in load.failures[:5])
        if not self.enough():
            yield f"only {load.on_kept} requests on kept and {load.on_new} on new connections"
        yield from (f"certificate {number} was presented after {delay:.2f} s" for number, delay in self.delays().items() if delay > WITHIN)
        for handshake in load.handshakes:
            due = max((number for number, at in self.put_at.items() if not is_junk(number) and at < handshake.begun - WITHIN), default=0)
            if number_of(handshake) < due or is_junk(number_of(handshake)):
                yield f"certificate {number_of(handshake)} was presented when {due} was due"
        refused = sum(value for name, value in self.counted.items() if not name.endswith("success"))
        if refused != len(junk):
            yield f"{len(junk)} updates were junk, counted were {refused}: {self.counted}"
        if len(self.said) < len(junk):
            yield f"{len(junk)} updates were junk, the log tells of {len(self.said)}"
        for number, told in self.told.items():
            good = str(number - is_junk(number))
            if told != {good}:
                yield f"/certs told of {sorted(told)} when {good} was the last good one"

    def figures(self):
        delays = [1000 * delay for delay in self.delays().values() if delay != float("inf")]
        refused = sum(value for name, value in self.counted.items() if not name.endswith("success"))
        return {
            "requests on kept connections": self.load.on_kept,
            "requests on new connections": self.load.on_new,
            "failed": len(self.load.failures),
            "good certificates presented": f"{len(delays)} of {len(self.put_at) - self.changes // EVERY}",
            "after, ms (median, slowest)": f"{statistics.median(delays):.0f}, {max(delays):.0f}" if delays else "-",
            "junk counted": f"{refused} of {self.changes // EVERY}",
            "junk logged": len(self.said),
            "seconds": f"{self.seconds:.0f}",
        }


def number_of(handshake):
    return next(int(name[1:-5]) for name in handshake.names if name.endswith(".test"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", help="the tidegate binary (default: the newest in target/), or `envoy`")
    parser.add_argument("--short", action="store_true", help="fifteen changes, and Envoy not beside")
    options = parser.parse_args()
    subject, changes = environment.subject(options.subject), 15 if options.short else 60
    beside = [] if options.short or subject == environment.oracle() else [environment.oracle()]
    failed = False
    for kind, named in ((FromFile, "an SDS file, moved into place"), (FromStream, "SDS over gRPC, on a unix socket")):
        runs = []
        for binary in [subject, *beside]:
            runs.append(Run(changes))
            with tempfile.TemporaryDirectory() as directory:
                asyncio.run(runs[-1].go(binary, kind, Path(directory)))
        figures = [run.figures() for run in runs]
        print(f"{named}: {changes} changes")
        print(f"  {'':32}" + "".join(f"{binary.name:>16}" for binary in [subject, *beside]))
        for name in figures[0]:
            print(f"  {name:32}" + "".join(f"{one[name]!s:>16}" for one in figures))
        broken = list(runs[0].broken())
        failed |= bool(broken)
        for line in broken[:20]:
            print(f"  DOES NOT HOLD: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
