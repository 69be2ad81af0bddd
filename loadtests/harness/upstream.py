"""The scripted upstreams of one case: what they answer is written in the case, and what they were sent is recorded raw.

They run in the harness's own process, so a case's step can say what they answer to the attempts of that very request. They
know nothing of the proxy between.
"""

import asyncio
import dataclasses
import socket
import ssl
import struct
import time

from . import upstream_dns, upstream_h2, upstream_tls, upstream_xds
from .process import free_port

DEFAULT = {"status": 200, "headers": {"content-type": "text/plain"}, "body": "hello\n"}
LIMIT = 4 * 1024 * 1024


@dataclasses.dataclass
class Record:
    """One request as the upstream saw it. `step` is the case's step that was running when its head arrived."""

    step: int
    cluster: str
    host: int
    line: str
    headers: list
    protocol: str
    body: bytes = b""
    trailers: list = dataclasses.field(default_factory=list)
    end: str = "incomplete"
    connection: dict = dataclasses.field(default_factory=dict)  # what is known of it: SNI, ALPN, client certificate, PROXY header
    reset: int | None = None  # over HTTP/2: the code with which the proxy took the stream back
    at: float = dataclasses.field(default_factory=time.monotonic)


class Upstreams:
    """All upstreams of a case; `step` and `script` are set by the runner before each step."""

    def __init__(self, described):
        self.described = {name: one or {} for name, one in described.items()}
        self.ports = {name: [free_port() for _ in range(one.get("hosts", 1))] for name, one in self.described.items()}
        self._servers, self._connections, self.name_servers, self.control_planes = [], set(), {}, {}
        self.seen = {}  # of each connection that is open, by its writer
        self.reset()

    def reset(self):
        """As before the first step: both sides meet the same upstreams."""
        self.records, self.step, self.script, self.connections = [], 0, [], []
        self._scripts = {name: list(one.get("script", [])) for name, one in self.described.items()}
        for server in self.name_servers.values():
            server.reset()

    def forget(self):
        """Before a proxy starts: it may ask name servers and control planes at once."""
        self.reset()
        for server in self.name_servers.values():
            server.asked.clear()
        for plane in self.control_planes.values():
            plane.reset()

    async def __aenter__(self):
        for name, one in self.described.items():
            for host, port in enumerate(self.ports[name]):
                if not one.get("refuse") and host not in one.get("refuse_hosts", []):
                    await self._listen(name, host, port, one)
        return self

    async def __aexit__(self, *_):
        for server in self._servers:
            server.close()
        self.drop_connections()

    def drop_connections(self):
        for writer in list(self._connections):
            writer.transport.abort()

    async def _listen(self, name, host, port, described):
        if described.get("deaf"):
            self._servers.append(Deaf(port))
            return
        if described.get("protocol") == "udp":
            serve = lambda: Packets(self, name, host)
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(serve, local_addr=("127.0.0.1", port))
            self._servers.append(transport)
            return
        if described.get("protocol") == "dns":
            self.name_servers[name], running = await upstream_dns.start(described.get("zone", {}), port)
            self._servers.extend(running)
            return
        if described.get("protocol") == "xds":
            self.control_planes.setdefault(name, upstream_xds.ControlPlane(upstream_tls.secrets(described)))
        serve = {"h1": self._serve_h1, "h2": upstream_h2.serve, "tcp": self._serve_tcp, "xds": None}[described.get("protocol", "h1")]

        async def accept(reader, writer, proxied=None):
            self._connections.add(writer)
            self.connections.append((self.step, name, host))
            self.seen[writer] = {**(proxied or {}), **upstream_tls.seen(writer)}
            try:
                if described.get("protocol") == "xds":
                    await self.control_planes[name].serve(reader, writer, self.seen[writer])
                elif described.get("protocol") == "h2":
                    await serve(self, name, host, reader, writer)
                else:
                    await serve(name, host, reader, writer)
            except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
                pass  # The proxy went away: what arrived until then is recorded.
            finally:
                self._connections.discard(writer)
                del self.seen[writer]
                writer.close()

        tls = upstream_tls.context(described, host)
        if host in described.get("proxied_hosts", []):
            self._servers.append(upstream_tls.Proxied(accept, port, tls))
        else:
            self._servers.append(await asyncio.start_server(accept, "127.0.0.1", port, limit=LIMIT, backlog=1024, ssl=tls))

    def behaviour(self, record):
        """What to answer: `always`, then the step's `up`, then the upstream's own `script`, `paths`, `then`."""
        own = self.described[record.cluster]
        if "always" in own:
            return own["always"]
        if "by_host" in own and record.host in own["by_host"]:
            return own["by_host"][record.host]
        if self.script:
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if self._scripts[record.cluster]:
            return self._scripts[record.cluster].pop(0)
        path = record.line.split(" ")[1].split("?")[0] if " " in record.line else record.line
        return own.get("paths", {}).get(path, own.get("then", {}))

    async def _serve_h1(self, name, host, reader, writer):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")[:-2]
            headers = [_field(line) for line in lines[1:]]
            record = Record(self.step, name, host, lines[0], headers, "h1", connection=self.seen[writer])
            self.records.append(record)
            behaviour = self.behaviour(record)
            for one in behaviour.get("informational", []):
                writer.write(_head(one["status"], one.get("reason", "Info"), pairs(one.get("headers"))))
            if behaviour.get("early"):
                await self._answer_h1(record, behaviour, reader, writer)
                await _body_h1(record, headers, reader)
                continue
            await _body_h1(record, headers, reader)
            if not await self._answer_h1(record, behaviour, reader, writer):
                return

    async def _answer_h1(self, record, behaviour, reader, writer):
        """Answers; False when the connection is over."""
        if "delay" in behaviour:
            await asyncio.sleep(behaviour["delay"])
        if behaviour.get("reset") == "before":
            return abort(writer)
        if behaviour.get("close") == "before":
            return False
        if "raw" in behaviour:
            for part in parts(behaviour["raw"]):
                await _send_part(writer, part)
            if behaviour.get("close"):
                return False
            return True
        head, body = response_h1(record, behaviour)
        writer.write(head)
        await writer.drain()
        if behaviour.get("reset") == "after_headers" or behaviour.get("close") == "after_headers":
            await asyncio.sleep(0.05)
            return abort(writer) if "reset" in behaviour else False
        if behaviour.get("status") == 101 or record.line.startswith("CONNECT "):
            await self._echo(record, reader, writer)
            return False
        if "body_delay" in behaviour:
            await asyncio.sleep(behaviour["body_delay"])
        for piece in body:
            if isinstance(piece, dict):
                await _send_part(writer, piece)
            else:
                writer.write(piece)
        await writer.drain()
        if behaviour.get("reset") == "after_body":
            await asyncio.sleep(0.05)
            return abort(writer)
        return not behaviour.get("close")

    async def _echo(self, record, reader, writer):
        while data := await reader.read(65536):
            record.body += data
            writer.write(data)
            await writer.drain()
        record.end = "complete"

    async def _serve_tcp(self, name, host, reader, writer):
        """`then: {delay, banner, echo, answer_after, reset, close}`: a peer that speaks no HTTP."""
        record = Record(self.step, name, host, "tcp", [], "tcp", connection=self.seen[writer])
        self.records.append(record)
        behaviour = self.behaviour(record)
        if "delay" in behaviour:
            await asyncio.sleep(behaviour["delay"])
        if behaviour.get("reset") == "before":
            abort(writer)
            return
        if "banner" in behaviour:
            writer.write(text(behaviour["banner"]))
        if behaviour.get("close") == "after_banner":
            await writer.drain()
            return
        while data := await reader.read(65536):
            record.body += data
            if "answer_after" in behaviour and record.body.endswith(text(behaviour["answer_after"])):
                writer.write(text(behaviour["answer"]))
                if behaviour.get("close") == "after_answer":
                    await writer.drain()
                    return
            elif behaviour.get("echo", True) and "answer_after" not in behaviour:
                writer.write(data)
            await writer.drain()
        record.end = "complete"
        if "farewell" in behaviour:
            writer.write(text(behaviour["farewell"]))
            await writer.drain()


class Packets(asyncio.DatagramProtocol):
    """A peer that sends every UDP packet back, but for empty ones, which asyncio does not send; each is a record."""

    def __init__(self, upstreams, name, host):
        self._upstreams, self._name, self._host = upstreams, name, host

    def connection_made(self, transport):
        self._transport = transport

    def datagram_received(self, data, peer):
        self._upstreams.records.append(Record(self._upstreams.step, self._name, self._host, "udp", [], "udp", data, end="complete"))
        self._transport.sendto(data, peer)


class Deaf:
    """A port whose connections are never made: its queue is full, so the system leaves what comes unanswered."""

    def __init__(self, port):
        self._sockets = [socket.socket()]
        self._sockets[0].bind(("127.0.0.1", port))
        self._sockets[0].listen(0)
        for _ in range(2):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            self._sockets.append(client)

    def close(self):
        for one in self._sockets:
            one.close()


def abort(writer):
    """Closes with RST: the peer sees a reset, not an end."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


def response_h1(record, behaviour):
    """(head bytes, body pieces) of an HTTP/1 answer; a length is added unless the behaviour frames the body itself."""
    status = behaviour.get("status", DEFAULT["status"])
    headers = pairs(behaviour.get("headers", DEFAULT["headers"]))
    names = {name.lower() for name, _ in headers}
    body = [text(behaviour.get("body", DEFAULT["body"] if status not in (101, 204, 304) else ""))]
    if "chunks" in behaviour or "trailers" in behaviour:
        headers.append(("transfer-encoding", "chunked"))
        body = []
        for chunk in behaviour.get("chunks", [behaviour.get("body", DEFAULT["body"])]):
            if isinstance(chunk, dict) and "sleep" in chunk:
                body.append(chunk)
            else:
                body.append(b"%x\r\n%s\r\n" % (len(text(chunk)), text(chunk)))
        if not behaviour.get("truncate"):
            trailers = "".join(f"{name}: {value}\r\n" for name, value in pairs(behaviour.get("trailers")))
            body.append(f"0\r\n{trailers}\r\n".encode("latin-1"))
    elif behaviour.get("framing") != "close" and "content-length" not in names and status not in (101, 204, 304):
        headers.append(("content-length", str(len(body[0]))))
    if record.line.startswith("HEAD "):
        body = []
    return _head(status, behaviour.get("reason", "Reason"), headers), body


def _head(status, reason, headers):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status} {reason}\r\n{lines}\r\n".encode("latin-1")


async def _body_h1(record, headers, reader):
    fields = {name.lower(): value for name, value in headers}
    if "chunked" in fields.get("transfer-encoding", "").lower():
        while True:
            size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
            if size == 0:
                break
            record.body += await reader.readexactly(size)
            await reader.readexactly(2)
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            record.trailers.append(_field(line.decode("latin-1").strip("\r\n")))
    elif length := int(fields.get("content-length", 0)):
        while len(record.body) < length:
            data = await reader.read(length - len(record.body))
            if not data:
                record.end = "truncated"
                raise ConnectionError
            record.body += data
    record.end = "complete"


async def _send_part(writer, part):
    if isinstance(part, dict) and "sleep" in part:
        await writer.drain()
        await asyncio.sleep(part["sleep"])
    else:
        writer.write(text(part))


def _field(line):
    name, _, value = line.partition(":")
    return name, value.strip(" \t")


def parts(value):
    return value if isinstance(value, list) else [value]


def text(value):
    """Bytes of a case's text: a string (one byte a character), `{times: n, of: text}`, or `{hex: "00ff"}`."""
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"]) if "hex" in value else text(value["of"]) * value["times"]
    if isinstance(value, list):
        return b"".join(text(one) for one in value)
    return str(value).encode("latin-1")


def pairs(headers):
    """Header pairs of a case's mapping (a list as value gives the name several times) or list of pairs."""
    if isinstance(headers, dict):
        return [(name, text(one).decode("latin-1")) for name, value in headers.items() for one in parts(value)]
    return [(str(name), text(value).decode("latin-1")) for name, value in headers or []]
