"""The scripted upstream over HTTP/2 (prior knowledge): the same behaviours, plus resets by code, GOAWAY and gRPC answers."""

import asyncio

import h2.events
import h2.exceptions

from . import upstream as base
from .h2_session import H2Session


async def serve(upstreams, name, host, reader, writer):
    tasks = set()

    def on_stream(stream):
        task = asyncio.create_task(_stream(upstreams, name, host, session, stream))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    session = H2Session(reader, writer, client=False, on_stream=on_stream).start(upstreams.described[name].get("settings"))
    try:
        await session._task
    finally:
        for task in tasks:
            task.cancel()


async def _stream(upstreams, name, host, session, stream):
    queue = session.queue(stream)
    event = await queue.get()
    fields = [(str(key), str(value)) for key, value in event.headers]
    pseudo = dict(pair for pair in fields if pair[0].startswith(":"))
    line = f"{pseudo.get(':method')} {pseudo.get(':path', '-')} h2"
    record = base.Record(upstreams.step, name, host, line, fields, "h2", connection=upstreams.seen.get(session.writer, {}))
    session.records[stream] = record
    upstreams.records.append(record)
    behaviour = upstreams.behaviour(record)
    try:
        if behaviour.get("echo_stream") or pseudo.get(":method") == "CONNECT" and not behaviour.get("early"):
            await _echo(session, stream, queue, record, behaviour)
            return
        if not behaviour.get("early"):
            await _receive(queue, record)
            if record.end == "reset":
                return
        await _answer(session, stream, record, behaviour)
        if behaviour.get("early"):
            await _receive(queue, record)
    except (h2.exceptions.ProtocolError, ConnectionError):
        record.end = "reset"  # The proxy took the stream back while we were answering.


async def _receive(queue, record):
    while record.end == "incomplete":
        event = await queue.get()
        if event is None or isinstance(event, h2.events.StreamReset):
            record.end = "reset"
        elif isinstance(event, h2.events.DataReceived):
            record.body += event.data
        elif isinstance(event, h2.events.TrailersReceived):
            record.trailers = [(str(name), str(value)) for name, value in event.headers]
        elif isinstance(event, h2.events.StreamEnded):
            record.end = "complete"


async def _answer(session, stream, record, behaviour):
    if "delay" in behaviour:
        await asyncio.sleep(behaviour["delay"])
    if behaviour.get("goaway") is not None:
        session.connection.close_connection(error_code=behaviour["goaway"], last_stream_id=0)
        session.flush()
        return
    if behaviour.get("reset") == "before":
        base.abort(session.writer)
        return
    if "rst" in behaviour and not behaviour.get("status"):
        session.reset(stream, behaviour["rst"])
        return
    for one in behaviour.get("informational", []):
        session.headers(stream, [(":status", str(one["status"])), *base.pairs(one.get("headers"))])
    headers, body, trailers = _message(record, behaviour)
    session.headers(stream, headers, end=not body and not trailers and not _held(behaviour))
    if behaviour.get("reset") == "after_headers":
        await asyncio.sleep(0.05)
        base.abort(session.writer)
        return
    if "body_delay" in behaviour:
        await asyncio.sleep(behaviour["body_delay"])
    for index, piece in enumerate(body):
        if isinstance(piece, dict) and "sleep" in piece:
            await asyncio.sleep(piece["sleep"])
        else:
            await session.data(stream, base.text(piece), end=index == len(body) - 1 and not trailers and not _held(behaviour))
    if "rst" in behaviour:
        await asyncio.sleep(0.05)
        session.reset(stream, behaviour["rst"])
    elif trailers:
        session.headers(stream, trailers, end=True)


def _held(behaviour):
    return "rst" in behaviour or behaviour.get("reset") == "after_headers"


def _message(record, behaviour):
    """(headers, body pieces, trailers); `grpc: {status, message, payload}` writes a gRPC answer."""
    status = str(behaviour.get("status", 200))
    if "grpc" in behaviour:
        grpc = behaviour["grpc"]
        end = [("grpc-status", str(grpc.get("status", 0)))]
        if "message" in grpc:
            end.append(("grpc-message", grpc["message"]))
        head = [(":status", status), ("content-type", "application/grpc"), *base.pairs(behaviour.get("headers"))]
        if grpc.get("trailers_only"):
            return head + end, [], []
        return head, [grpc_frame(one) for one in base.parts(grpc.get("payload", "pong"))], end + base.pairs(behaviour.get("trailers"))
    headers = [(":status", status), *base.pairs(behaviour.get("headers", base.DEFAULT["headers"]))]
    body = behaviour.get("chunks") or [behaviour.get("body", base.DEFAULT["body"] if status not in ("204", "304") else "")]
    if record.line.startswith("HEAD ") or body == [""]:
        body = []
    return headers, body, base.pairs(behaviour.get("trailers"))


def grpc_frame(payload):
    """{hex} of one length-prefixed gRPC message."""
    data = base.text(payload)
    return {"hex": (b"\0" + len(data).to_bytes(4, "big") + data).hex()}


async def _echo(session, stream, queue, record, behaviour):
    """Full duplex: each piece goes back as it comes."""
    session.headers(stream, [(":status", str(behaviour.get("status", 200))), *base.pairs(behaviour.get("headers"))])
    while True:
        event = await queue.get()
        if event is None or isinstance(event, h2.events.StreamReset):
            record.end = "reset"
            return
        if isinstance(event, h2.events.DataReceived):
            record.body += event.data
            await session.data(stream, event.data)
        elif isinstance(event, h2.events.StreamEnded):
            record.end = "complete"
            trailers = base.pairs(behaviour.get("trailers"))
            if trailers:
                session.headers(stream, trailers, end=True)
            else:
                await session.data(stream, b"", end=True)
            return
