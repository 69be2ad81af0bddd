"""The HTTP/1 and TCP client: writes exactly the bytes of a step, and reports exactly what came back.

A response is a plain dict: {status, reason, version, headers, body, trailers, informational, end}; `end` says how it ended
(complete, closed, truncated, timeout); FIN and RST are both `closed`, since which of them arrives depends on what was still
unread. It judges nothing.
"""

import asyncio
import ssl

from . import client_tls
from .upstream import abort, pairs, parts, text

LIMIT = 8 * 1024 * 1024


class H1Client:
    """One connection of the client to the proxy."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port, local=None, tls=None, first=None, context=None):
        """Connects; `first` goes out before anything else (a PROXY header). `context`: one that has been used before."""
        if tls is not None and context is None:
            context = client_tls.context(tls)
        local_addr = (local, 0) if local else None
        name = (tls.get("sni") or "") if tls is not None else None
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, limit=LIMIT, local_addr=local_addr, ssl=context, server_hostname=name
        )
        if first is not None:
            writer.write(text(first))
        return cls(reader, writer)

    def close(self):
        self.writer.close()

    async def exchange(self, step, method, data):
        """Sends the pieces of one request and reads its response."""
        sender = asyncio.create_task(self.send(data))
        try:
            if "abort_after" in step:
                await asyncio.sleep(step["abort_after"])
                abort(self.writer)
                return {"end": "aborted by the client"}
            # What ends a CONNECT-UDP answers 200 with chunks, which are the conversation's.
            udp = dict(pairs(step.get("headers"))).get("upgrade") == "connect-udp"
            response = await self.read_response("CONNECT" if udp else method, step.get("tunnel") is not None)
            if step.get("tunnel") is not None and response.get("status") in (101, 200):
                response["tunnel"] = await self.run(step["tunnel"])
            elif step.get("wait_close") or "close" in _connection(response):
                response["closed"] = await self.at_end()
            return response
        finally:
            sender.cancel()

    async def send(self, data):
        for piece in data:
            try:
                if isinstance(piece, dict) and "sleep" in piece:
                    await self.writer.drain()
                    await asyncio.sleep(piece["sleep"])
                elif isinstance(piece, dict) and "half_close" in piece:
                    self.writer.write_eof()
                else:
                    self.writer.write(text(piece))
                    await self.writer.drain()
            except (ConnectionError, OSError):
                return  # The proxy answered early and closed: what it answered is what counts.

    async def at_end(self, seconds=3.0):
        """Whether the peer closes, and how, within `seconds`; bytes that still come are shown."""
        try:
            data = await asyncio.wait_for(self.reader.read(65536), seconds)
        except TimeoutError:
            return "open"
        except (ConnectionError, ssl.SSLError):
            return "closed"
        return "closed" if not data else f"unexpected bytes: {data[:80]!r}"

    async def read_response(self, method, tunnel=False):
        response = {"informational": []}
        try:
            while True:
                head = await self.reader.readuntil(b"\r\n\r\n")
                self._head(response, head.decode("latin-1"))
                if not 100 <= response["status"] < 200 or response["status"] == 101:
                    break
                response["informational"].append({key: response[key] for key in ("status", "headers")})
            await self._body(response, method, tunnel)
        except asyncio.IncompleteReadError as error:
            if "status" not in response or error.partial and "end" not in response and "body" not in response:
                return {"end": "closed", "bytes": error.partial.decode("latin-1")}
            response["body"] = response.get("body", "") + error.partial.decode("latin-1")
            response["end"] = "truncated"
        except (ConnectionError, ssl.SSLError):
            if "status" not in response:
                return {"end": "closed", "bytes": ""}
            response["end"] = "truncated"
        return response

    @staticmethod
    def _head(response, head):
        lines = head.split("\r\n")[:-2]
        version, _, rest = lines[0].partition(" ")
        status, _, reason = rest.partition(" ")
        response.update(version=version, status=int(status), reason=reason, headers=[list(_field(line)) for line in lines[1:]])

    async def _body(self, response, method, tunnel):
        fields = {name.lower(): value for name, value in response["headers"]}
        status, response["body"] = response["status"], ""
        if status == 101 or (tunnel and method == "CONNECT" and status == 200):
            response["end"] = "tunnel"
            return
        if method == "HEAD" or status in (204, 304):
            response["end"] = "complete"
            return
        if "chunked" in fields.get("transfer-encoding", "").lower():
            await self._chunks(response)
        elif "content-length" in fields:
            await self._length(response, int(fields["content-length"]))
        else:
            response["body"] = (await self.reader.read(-1)).decode("latin-1")
            response["end"] = "closed"
            return
        response["end"] = "complete"

    async def _length(self, response, length):
        while (left := length - len(response["body"])) > 0:
            data = await self.reader.read(left)
            if not data:
                raise asyncio.IncompleteReadError(b"", left)
            response["body"] += data.decode("latin-1")

    async def _chunks(self, response):
        while True:
            line = await self.reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            response["body"] += (await self.reader.readexactly(size)).decode("latin-1")
            await self.reader.readexactly(2)
        trailers = []
        while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
            trailers.append(list(_field(line.decode("latin-1").rstrip("\r\n"))))
        if trailers:
            response["trailers"] = trailers

    async def run(self, actions):
        """A conversation over bytes: send, receive n, receive until the end, half close, wait, reset. Returns what came."""
        received, end = "", "open"
        try:
            for action in actions:
                if "send" in action:
                    self.writer.write(text(action["send"]))
                    await self.writer.drain()
                elif "receive" in action:
                    received += (await asyncio.wait_for(self.reader.readexactly(action["receive"]), 5)).decode("latin-1")
                elif "sleep" in action:
                    await asyncio.sleep(action["sleep"])
                elif "half_close" in action:
                    self.writer.write_eof()
                elif "reset" in action:
                    abort(self.writer)
                    end = "reset by the client"
                elif "until_close" in action:
                    received += (await asyncio.wait_for(self.reader.read(-1), action["until_close"] or 5)).decode("latin-1")
                    end = "closed"
        except asyncio.IncompleteReadError as error:
            received, end = received + error.partial.decode("latin-1"), "closed"
        except TimeoutError:
            end = "timeout"
        except (ConnectionError, OSError):  # also a TLS alert
            end = "closed"
        return {"received": received, "end": end}


def request_bytes(step, method, path, host):
    """The pieces that one structured HTTP/1 request is written in."""
    version = step.get("version", "HTTP/1.1")
    headers = pairs(step.get("headers"))
    if host is not None and not any(name.lower() == "host" for name, _ in headers):
        headers.insert(0, ("host", host))
    names = {name.lower() for name, _ in headers}
    body = []
    if "chunks" in step or "trailers" in step:
        headers.append(("transfer-encoding", "chunked"))
        for chunk in step.get("chunks", []):
            body.append(chunk if isinstance(chunk, dict) and "sleep" in chunk else b"%x\r\n%s\r\n" % (len(text(chunk)), text(chunk)))
        trailers = "".join(f"{name}: {value}\r\n" for name, value in pairs(step.get("trailers")))
        body.append(f"0\r\n{trailers}\r\n".encode("latin-1"))
    elif "body" in step:
        pieces = parts(step["body"])
        length = sum(len(text(piece)) for piece in pieces if not (isinstance(piece, dict) and "sleep" in piece))
        if "content-length" not in names:
            headers.append(("content-length", str(length)))
        body = pieces
    elif method in ("POST", "PUT", "PATCH") and not names & {"content-length", "transfer-encoding"}:
        headers.append(("content-length", "0"))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = f"{method} {path} {version}\r\n{lines}\r\n".encode("latin-1")
    plain = [piece.decode("latin-1") if isinstance(piece, bytes) else piece for piece in body]
    if plain and not any(isinstance(piece, dict) and "sleep" in piece for piece in plain):
        return [(head + text(plain)).decode("latin-1")]
    return [head.decode("latin-1"), *plain]


def _connection(response):
    values = [value.lower() for name, value in response.get("headers", []) if name.lower() == "connection"]
    return ",".join(values)


def _field(line):
    name, _, value = line.partition(":")
    return name, value.strip(" \t")
