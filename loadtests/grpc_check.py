#!/usr/bin/env python3
"""A real gRPC client and server (grpcio) through the proxy, HTTP/2 on both sides: nothing may be lost or changed.

Unary calls by the thousand, bidirectional streams, deadlines, cancellation, Trailers-Only errors, metadata and large messages.
Ends with 1 when anything arrives other than as it was sent.
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
import threading
import time
from concurrent import futures

from harness import environment

environment.enter()

import grpc  # noqa: E402

from harness.process import Proxy, free_port  # noqa: E402
from harness.template import bootstrap  # noqa: E402

CALLS = 10_000
CASE = {
    "upstreams": {"up": {"protocol": "h2"}},
    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "0s"}}],
    "clusters": {"up": {"circuit_breakers": {"thresholds": [{"max_requests": 5000, "max_pending_requests": 5000}]}}},
}


class Service(grpc.GenericRpcHandler):
    """Methods on plain bytes, so that no generated code is needed. What the server notices is kept for the client's checks."""

    def __init__(self):
        self.cancelled, self.remaining = threading.Event(), None

    def service(self, call):
        method = call.method.rsplit("/", 1)[1]
        if method in ("Chat", "Count"):
            make = grpc.stream_stream_rpc_method_handler if method == "Chat" else grpc.unary_stream_rpc_method_handler
            return make(getattr(self, method))
        return grpc.unary_unary_rpc_method_handler(getattr(self, method))

    def Echo(self, message, context):
        context.send_initial_metadata((("x-initial", "i"),))
        context.set_trailing_metadata((("x-trailing", "t"), ("x-data-bin", b"\x00\xff")))
        return message

    def Chat(self, messages, context):
        for message in messages:
            yield message[::-1]

    def Count(self, message, context):
        for number in range(int(message)):
            yield str(number).encode()

    def Fail(self, message, context):
        context.set_trailing_metadata((("x-why", "because"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no 100% of it: \u00e4\u00f6 \u2713\n")

    def FailLate(self, message, context):
        context.send_initial_metadata((("x-initial", "i"),))
        context.abort(grpc.StatusCode.DATA_LOSS, "late")

    def Hang(self, message, context):
        self.cancelled.clear()
        self.remaining = context.time_remaining()
        context.add_callback(self.cancelled.set)
        self.cancelled.wait(10)
        return b""


class Checks:
    """Each method is one check; what it raises is its failure."""

    def __init__(self, channel, service, calls):
        self.channel, self.service, self.calls = channel, service, calls

    def unary(self, method):
        return self.channel.unary_unary(f"/test.Service/{method}")

    def check_unary_calls(self):
        echo = self.unary("Echo")

        def one(number):
            message = b"%d" % number * (1 + number % 50)
            if echo(message, timeout=30) != message:
                raise AssertionError(f"call {number} came back changed")

        with futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(one, range(self.calls)))

    def check_metadata(self):
        answer, call = self.unary("Echo").with_call(b"m", metadata=(("x-a", "1"), ("x-b-bin", b"\x01\x02")), timeout=5)
        assert answer == b"m"
        assert ("x-initial", "i") in call.initial_metadata(), call.initial_metadata()
        trailing = dict(call.trailing_metadata())
        assert trailing["x-trailing"] == "t" and trailing["x-data-bin"] == b"\x00\xff", trailing

    def check_bidirectional_streams(self):
        chat = self.channel.stream_stream("/test.Service/Chat")

        def one(stream):
            sent = [b"%d-%d" % (stream, number) for number in range(100)]
            received = list(chat(iter(sent), timeout=30))
            assert received == [message[::-1] for message in sent], f"stream {stream}: {len(received)} of 100"

        with futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(100)))

    def check_streams_are_full_duplex(self):
        """Each answer must come before the next message is sent: nothing may be held back."""
        turn, answers = threading.Semaphore(1), []

        def messages():
            for number in range(20):
                assert turn.acquire(timeout=5), f"no answer to message {number - 1}"
                yield b"%d" % number

        for answer in self.channel.stream_stream("/test.Service/Chat")(messages(), timeout=20):
            answers.append(answer)
            turn.release()
        assert len(answers) == 20

    def check_server_stream(self):
        assert len(list(self.channel.unary_stream("/test.Service/Count")(b"5000", timeout=30))) == 5000

    def check_large_message(self):
        message = bytes(range(256)) * 12_000  # 3 MB
        assert self.unary("Echo")(message, timeout=30) == message

    def check_trailers_only_error(self):
        error = self._error("Fail", timeout=5)
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error.code()
        assert error.details() == "no 100% of it: \u00e4\u00f6 \u2713\n", error.details()
        assert dict(error.trailing_metadata())["x-why"] == "because"

    def check_error_after_headers(self):
        error = self._error("FailLate", timeout=5)
        assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "late")

    def check_deadline(self):
        start = time.monotonic()
        error = self._error("Hang", timeout=0.5)
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error.code()
        assert 0.4 < time.monotonic() - start < 1.5
        assert self.service.remaining is not None and 0 < self.service.remaining < 0.6, self.service.remaining
        assert self.service.cancelled.wait(2), "the server was not told"

    def check_cancellation(self):
        future = self.unary("Hang").future(b"", timeout=20)
        time.sleep(0.3)
        self.service.cancelled.clear()
        future.cancel()
        assert self.service.cancelled.wait(2), "the server was not told"

    def _error(self, method, timeout):
        try:
            self.unary(method)(b"", timeout=timeout)
        except grpc.RpcError as error:
            return error
        raise AssertionError(f"{method} did not fail")


def run_checks(channel, service, calls):
    failed = 0
    checks = Checks(channel, service, calls)
    for name in (name for name in vars(Checks) if name.startswith("check_")):
        start = time.monotonic()
        try:
            getattr(checks, name)()
            outcome = "ok"
        except (AssertionError, grpc.RpcError, KeyError) as error:
            failed += 1
            outcome = f"FAILED: {type(error).__name__}: {error}"
        print(f"{name.removeprefix('check_').replace('_', ' '):30} {time.monotonic() - start:5.1f} s  {outcome}", flush=True)
    return failed


async def main(options):
    service = Service()
    server = grpc.server(futures.ThreadPoolExecutor(32))
    server.add_generic_rpc_handlers((service,))
    ports = {"admin": free_port(), "listen": free_port(), "up": [server.add_insecure_port("127.0.0.1:0")]}
    server.start()
    directory = environment.CACHE / f"grpc-{os.getpid()}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    config = directory / "config.json"
    config.write_text(json.dumps(bootstrap(CASE, {**ports, "log": str(directory / "access.log")})))
    try:
        async with Proxy(environment.subject(options.subject), config, ports["admin"], directory) as proxy:
            with grpc.insecure_channel(f"127.0.0.1:{ports['listen']}", options=[("grpc.max_receive_message_length", -1)]) as channel:
                failed = await asyncio.to_thread(run_checks, channel, service, options.calls)
            stats = await proxy.stats()
    finally:
        server.stop(0)
        shutil.rmtree(directory, ignore_errors=True)
    print(f"upstream requests {stats.get('cluster.up.upstream_rq_total')}, resets {stats.get('cluster.up.upstream_rq_tx_reset')}")
    print("all as sent" if not failed else f"{failed} checks failed")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--subject", help="the tidegate binary (default: the newest in target/), or `envoy`")
    parser.add_argument("--calls", type=int, default=CALLS, help="how many unary calls")
    sys.exit(asyncio.run(main(parser.parse_args())))
