"""Starting and stopping one proxy, Envoy or tidegate, with the same flags, and asking its admin interface.

It knows command lines and ports; it does not know what the configuration means.
"""

import asyncio
import os
import random
import signal
import socket

FIRST_PORT, LAST_PORT = 15000, 31000  # below the range that the kernel hands out to outgoing connections
START_SECONDS = 20
_taken = set()
_random = random.Random(os.getpid())


def free_port():
    """A loopback port that nobody listens on, never handed out twice by this process."""
    while True:
        port = _random.randrange(FIRST_PORT, LAST_PORT)
        if port in _taken:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _taken.add(port)
        return port


class StartFailed(Exception):
    """The proxy ended, or was not ready in time; carries what it printed."""


class Proxy:
    """One running proxy. Use as `async with Proxy(...)`: leaving the block ends the process that it started."""

    def __init__(self, binary, config, admin_port, directory, flags=(), concurrency=1, listen=None):
        self.binary = binary
        self.admin_port, self.listen_port = admin_port, listen
        self.output = directory / "output.txt"
        self.command = [
            str(binary),
            *behaviour_flags(binary),
            *("-c", str(config), "--concurrency", str(concurrency), "-l", "warning", "--disable-hot-restart"),
            *("--file-flush-interval-msec", "20", "--service-node", "node", "--service-cluster", "cluster"),
            *flags,
        ]
        self.process = None

    async def __aenter__(self):
        with open(self.output, "wb") as output:
            self.process = await asyncio.create_subprocess_exec(*self.command, stdout=output, stderr=output, cwd=self.output.parent)
        try:
            await asyncio.wait_for(self._ready(), START_SECONDS)
        except BaseException as error:
            await self.stop()
            if isinstance(error, TimeoutError):
                raise StartFailed(f"not ready after {START_SECONDS} s: {self.tail()}")
            raise
        return self

    async def __aexit__(self, *_):
        await self.stop()

    async def stop(self):
        """SIGINT, on which nobody waits for connections still to come, then SIGKILL: nothing that a case measures happens after
        this."""
        for sign in (signal.SIGINT, signal.SIGKILL):
            if self.process.returncode is not None:
                return
            self.process.send_signal(sign)
            try:
                await asyncio.wait_for(self.process.wait(), 2)
            except TimeoutError:
                continue

    async def _ready(self):
        while True:
            if self.process.returncode is not None:
                raise StartFailed(self.tail())
            try:
                status, _, _ = await self.admin("/ready")
                if status == 200:
                    return
            except OSError:
                if self.listen_port and listens(self.listen_port):
                    await asyncio.sleep(0.3)  # serving, and without an admin interface: as it is while it is being built
                    if not listens(self.admin_port):
                        return
            await asyncio.sleep(0.02)

    def tail(self, lines=6):
        text = self.output.read_text(errors="replace").strip()
        return "\n".join(text.splitlines()[-lines:]) or f"ended with {self.process.returncode} and said nothing"

    async def admin(self, path, method="GET"):
        """(status, header lines, body) of one admin request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.admin_port)
        try:
            writer.write(f"{method} {path} HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
            data = await asyncio.wait_for(reader.read(-1), 10)
        finally:
            writer.close()
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        if len(lines[0].split()) < 2:
            raise ConnectionError("the admin interface closed without an answer")
        if any(line.lower().startswith("transfer-encoding: chunked") for line in lines):
            body = _unchunk(body)
        return int(lines[0].split()[1]), lines[1:], body.decode("utf-8", "replace")

    async def stats(self):
        """Counters and gauges by name; histograms and text readouts are left out."""
        _, _, body = await self.admin("/stats")
        found = {}
        for line in body.splitlines():
            name, _, value = line.rpartition(": ")
            if name and value.isdigit():
                found[name] = int(value)
        return found

    def resident_kib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def listens(port):
    """Whether somebody listens on a TCP port, without connecting to it (a connection would be counted)."""
    with open("/proc/net/tcp") as table:
        return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in table)


def behaviour_flags(binary):
    """tidegate is compared with Envoy's defaults; Envoy knows no such flag."""
    return [] if binary.name == "envoy" else ["--envoy-defaults"]


def _unchunk(data):
    whole = b""
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size.split(b";")[0] or b"0", 16)
        if length == 0:
            break
        whole, data = whole + rest[:length], rest[length + 2 :]
    return whole
