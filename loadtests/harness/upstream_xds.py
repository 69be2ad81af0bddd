"""A scripted control plane over HTTP/2: gives secrets by name, and of other types empty resources or none, over streams of either dialect.

It knows the wire form of the few messages that it needs. What it was asked, and over what connection, is kept for who compares it.
"""

import asyncio

import h2.events

from .h2_session import H2Session

TYPE = "type.googleapis.com/envoy."
SECRET = TYPE + "extensions.transport_sockets.tls.v3.Secret"
EMPTY = {TYPE + "config.endpoint.v3.ClusterLoadAssignment", TYPE + "service.runtime.v3.Runtime"}  # given with nothing but a name
# What stands where: (type, names, nonce, error) of a request; {resource, nonce} of a response are the same in both.
SOTW, DELTA = (4, 3, 5, 6), (2, 3, 6, 7)


class ControlPlane:
    """`secrets`: {name: bytes of a Secret}; more come with `put`, which tells every stream that asked for that name."""

    def __init__(self, secrets):
        self.given = dict(secrets)
        self.reset()

    def reset(self):
        self.secrets, self.version, self.asked, self.refused, self._streams = dict(self.given), 1, [], [], set()

    def put(self, name, secret):
        self.secrets[name] = secret
        self.version += 1
        for stream in list(self._streams):
            stream.tell(SECRET, name)

    async def serve(self, reader, writer, seen=None):
        """One connection, until it ends; `seen` is what is known of it."""
        tasks = set()

        def on_stream(number):
            task = asyncio.create_task(_Stream(self, session, number, seen or {}).run())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        session = H2Session(reader, writer, client=False, on_stream=on_stream).start()
        try:
            await session._task
        finally:
            for task in tasks:
                task.cancel()


class _Stream:
    def __init__(self, plane, session, number, seen):
        self.plane, self.session, self.number, self.seen = plane, session, number, seen
        self.names, self.delta = {}, False

    async def run(self):
        queue = self.session.queue(self.number)
        head = {str(name): str(value) for name, value in (await queue.get()).headers}
        self.delta = "/Delta" in head[":path"]
        self.session.headers(self.number, [(":status", "200"), ("content-type", "application/grpc")])
        self.plane._streams.add(self)
        data = b""
        try:
            while isinstance(event := await queue.get(), h2.events.DataReceived):
                data += event.data
                while len(data) >= 5 and len(data) >= 5 + (length := int.from_bytes(data[1:5], "big")):
                    self.take(data[5 : 5 + length])
                    data = data[5 + length :]
        finally:
            self.plane._streams.discard(self)

    def take(self, message):
        kind, names, nonce, error = DELTA if self.delta else SOTW
        found = {}
        for number, value in fields(message):
            found.setdefault(number, []).append(value)
        kind = found.get(kind, [SECRET.encode()])[0].decode()
        self.plane.asked.append({"type": kind.rsplit(".", 1)[1], "dialect": "delta" if self.delta else "sotw", **self.seen})
        if error in found:
            self.plane.refused.append(found[error][0].decode("utf-8", "replace"))
            return
        wanted = [name.decode() for name in found.get(names, [])]
        known = self.names.setdefault(kind, [])
        fresh = wanted if self.delta else [] if sorted(wanted) == sorted(known) else wanted
        self.names[kind] = known + fresh if self.delta else wanted
        if fresh or nonce not in found:
            self.answer(kind, fresh)

    def tell(self, kind, name):
        if name in self.names.get(kind, []):
            self.answer(kind, [name] if self.delta else self.names[kind])

    def answer(self, kind, names):
        version = str(self.plane.version)
        made = b"".join(self.resource(kind, name, version) for name in names)
        body = field(1, version) + made + field(4, kind) + field(5, version)
        if self.delta:
            body += b"".join(field(6, name) for name in names if self.value(kind, name) is None)
        self.session.connection.send_data(self.number, b"\0" + len(body).to_bytes(4, "big") + body)
        self.session.flush()

    def value(self, kind, name):
        return self.plane.secrets.get(name) if kind == SECRET else field(1, name) if kind in EMPTY else None

    def resource(self, kind, name, version):
        value = self.value(kind, name)
        if value is None:
            return b""
        whole = field(1, kind) + field(2, value)
        return field(2, field(3, name) + field(1, version) + field(2, whole) if self.delta else whole)


def certificate(name, chain, key):
    """The Secret `name`: a certificate and its key as PEM text."""
    return field(1, name) + field(2, field(1, field(3, chain)) + field(2, field(3, key)))


def authority(name, pem):
    """The Secret `name`: a validation context that trusts `pem`."""
    return field(1, name) + field(4, field(1, field(3, pem)))


def field(number, value):
    """A length-delimited field of a protobuf message."""
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def fields(data):
    """(number, value) of a message's fields, those that are not length-delimited left out."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        if key & 7 == 2:
            length, at = _read_varint(data, at)
            yield key >> 3, data[at : at + length]
            at += length
        elif key & 7 == 0:
            _, at = _read_varint(data, at)
        else:
            at += 8 if key & 7 == 1 else 4


def _varint(number):
    made = b""
    while number > 127:
        made, number = made + bytes([number & 127 | 128]), number >> 7
    return made + bytes([number])


def _read_varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
