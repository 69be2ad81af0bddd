"""The HTTP/2 client (prior knowledge): one connection, many streams, and raw frames for what no library would send."""

import asyncio

import h2.events
import h2.exceptions
import hpack

from .client_h1 import H1Client
from .h2_session import H2Session
from .upstream import pairs, parts, text
from .upstream_h2 import grpc_frame

FRAMES = {"DATA": 0, "HEADERS": 1, "PRIORITY": 2, "RST_STREAM": 3, "SETTINGS": 4, "PING": 6, "GOAWAY": 7, "WINDOW_UPDATE": 8, "CONTINUATION": 9}
FLAGS = {"END_STREAM": 1, "ACK": 1, "END_HEADERS": 4, "PADDED": 8}


class H2Client:
    def __init__(self, connection, session):
        self.connection, self.session = connection, session

    @classmethod
    async def open(cls, port, local=None, tls=None, first=None, settings=None):
        connection = await H1Client.open(port, local, tls, first)
        return cls(connection, H2Session(connection.reader, connection.writer, client=True).start(settings))

    def close(self):
        self.session.stop()

    async def exchange(self, step, method, path, host, scheme="http"):
        headers = [(":method", method)]
        if path is not None:
            headers += [(":scheme", scheme), (":path", path)]
        if host is not None:
            headers.append((":authority", host))
        headers += pairs(step.get("headers"))
        body = [grpc_frame(one) for one in parts(step["grpc"])] if "grpc" in step else parts(step["body"]) if "body" in step else []
        trailers = pairs(step.get("trailers"))
        if step.get("pseudo") is not None:
            headers = pairs(step["pseudo"]) + pairs(step.get("headers"))
        try:
            stream = self.session.connection.get_next_available_stream_id()
            queue = self.session.queue(stream)
            # Not flushed here: head and body go out together, so that what a peer has read when it answers does not vary.
            self.session.connection.send_headers(stream, headers, end_stream=not body and not trailers and not step.get("open") and "tunnel" not in step)
            if not body or isinstance(body[0], dict) and "sleep" in body[0]:
                self.session.flush()
        except h2.exceptions.ProtocolError as error:
            return {"end": f"not sent: {type(error).__name__}"}
        sender = asyncio.create_task(self._send(stream, step, body, trailers))
        try:
            if "reset_after" in step:
                await asyncio.sleep(step["reset_after"])
                self.session.reset(stream, step.get("code", 8))
                return {"end": "reset by the client"}
            response = {"informational": [], "body": ""}
            try:
                return await asyncio.wait_for(self._read(queue, response), step.get("for"))
            except TimeoutError:
                return {**response, "end": "open"}
        finally:
            sender.cancel()

    async def _send(self, stream, step, body, trailers):
        try:
            for index, piece in enumerate(body):
                if isinstance(piece, dict) and "sleep" in piece:
                    await asyncio.sleep(piece["sleep"])
                    continue
                last = index == len(body) - 1 and not trailers and not step.get("open")
                await self.session.data(stream, text(piece), end=last)
            if trailers:
                self.session.headers(stream, trailers, end=True)
            for action in step.get("tunnel", []):
                if "send" in action:
                    await self.session.data(stream, text(action["send"]))
                elif "sleep" in action:
                    await asyncio.sleep(action["sleep"])
                elif "half_close" in action:
                    await self.session.data(stream, b"", end=True)
        except (h2.exceptions.ProtocolError, ConnectionError, KeyError):
            pass  # The proxy ended the stream first: what it answered is what counts.

    async def _read(self, queue, response):
        while True:
            event = await queue.get()
            if event is None:
                response["end"] = self.session.closed
                if self.session.goaway is not None:
                    response["goaway"] = self.session.goaway
                return response
            if isinstance(event, h2.events.InformationalResponseReceived):
                status, headers = _split(event.headers)
                response["informational"].append({"status": status, "headers": headers})
            elif isinstance(event, h2.events.ResponseReceived):
                status, headers = _split(event.headers)
                response.update(status=status, headers=headers, version="h2")
            elif isinstance(event, h2.events.DataReceived):
                response["body"] += event.data.decode("latin-1")
            elif isinstance(event, h2.events.TrailersReceived):
                response["trailers"] = _split(event.headers)[1]
            elif isinstance(event, h2.events.StreamReset):
                response["end"] = f"reset {int(event.error_code)}"
                return response
            elif isinstance(event, h2.events.StreamEnded):
                response["end"] = "complete"
                return response


def _split(headers):
    fields = [[str(name), str(value)] for name, value in headers]
    status = next((value for name, value in fields if name == ":status"), "0")
    return int(status), [pair for pair in fields if pair[0] != ":status"]


def frames(described):
    """Preface, SETTINGS, and then frames that a case writes out: {frame, stream, flags, hex | text | headers}."""
    data = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b"")
    encoder = hpack.Encoder()
    for one in described:
        payload = text(one.get("payload", ""))
        if "headers" in one:
            payload = encoder.encode(pairs(one["headers"]), huffman=False)
        flags = sum(FLAGS[name] for name in one.get("flags", []))
        data += _frame(FRAMES[one["frame"]], flags, one.get("stream", 0), payload) * one.get("times", 1)
    return data


def _frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def read_frames(data):
    """What a peer answered to raw frames, short; SETTINGS, ACKs and windows are left out."""
    found, decoder, names = [], hpack.Decoder(), {value: name for name, value in FRAMES.items()}
    while len(data) >= 9:
        length, kind, flags, stream = int.from_bytes(data[:3], "big"), data[3], data[4], int.from_bytes(data[5:9], "big")
        payload, data = data[9 : 9 + length], data[9 + length :]
        if kind in (FRAMES["SETTINGS"], FRAMES["WINDOW_UPDATE"]):
            continue
        frame = {"frame": names.get(kind, str(kind)), "stream": stream}
        if kind == FRAMES["HEADERS"] and flags & 4:
            frame["headers"] = [list(map(str, pair)) for pair in decoder.decode(payload)]
        elif kind == FRAMES["RST_STREAM"]:
            frame["code"] = int.from_bytes(payload, "big")
        elif kind == FRAMES["GOAWAY"]:
            frame["code"] = int.from_bytes(payload[4:8], "big")
        else:
            frame["payload"] = payload.decode("latin-1")
        earlier = next((one for one in found if kind == FRAMES["DATA"] and one["frame"] == "DATA" and one["stream"] == stream), None)
        if earlier:  # how a body is cut into frames may differ
            earlier["payload"] += frame["payload"]
        else:
            found.append(frame)
    return found
