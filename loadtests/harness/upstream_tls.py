"""TLS of the scripted upstreams, what a server sees of a client there, and the PROXY header that may stand before it.

`tls: {cert | sans, alpn, verify}` is for all hosts of an upstream, `tls_hosts: [{...}, null]` for each; null is plain.
"""

import asyncio
import socket
import ssl

from . import certificates, upstream_xds

LIMIT = 4 * 1024 * 1024


def context(described, host):
    """The server's context of one host, or None. `cert` is one of the standing certificates, `sans` has one made."""
    own = described["tls_hosts"][host] if "tls_hosts" in described else (described["tls"] or {}) if "tls" in described else None
    if own is None:
        return None
    certs = certificates.standing()
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    name = own.get("cert", "tls")
    made.load_cert_chain(*(certificates.leaf(own["sans"]) if "sans" in own else (certs / f"{name}.crt", certs / f"{name}.key")))
    if own.get("alpn"):
        made.set_alpn_protocols(own["alpn"])
    if own.get("verify"):
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_verify_locations(certs / "ca.crt")
    made.sni_callback = _keep_name
    return made


def _keep_name(connection, name, _context):
    connection.asked_name = name


def seen(writer):
    """What the handshake told: version, SNI, ALPN, the client's subject. Nothing of a plain connection."""
    connection = writer.get_extra_info("ssl_object")
    if connection is None:
        return {}
    subject = (connection.getpeercert() or {}).get("subject")
    told = {"sni": getattr(connection, "asked_name", None), "alpn": connection.selected_alpn_protocol()}
    return {"tls": connection.version(), **told, "client": dict(pair for part in subject for pair in part).get("commonName") if subject else None}


def secrets(described):
    """Bytes of the secrets that a scripted control plane has: `{name: {cert: NAME} | {ca: true}}`, of the standing certificates."""
    certs, made = certificates.standing(), {}
    for name, one in described.get("secrets", {}).items():
        if "cert" in one:
            pair = ((certs / f"{one['cert']}.{kind}").read_text() for kind in ("crt", "key"))
            made[name] = upstream_xds.certificate(name, *pair)
        else:
            made[name] = upstream_xds.authority(name, (certs / "ca.crt").read_text())
    return made


class Proxied:
    """A port where each connection begins with a PROXY header; `accept(reader, writer, {"proxy": ...})` gets what follows it."""

    def __init__(self, accept, port, tls):
        self._accept, self._tls, self._running = accept, tls, set()
        self._socket = socket.create_server(("127.0.0.1", port), backlog=128)
        self._socket.setblocking(False)
        self._start(self._listen())

    def _start(self, work):
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def close(self):
        for task in list(self._running):
            task.cancel()
        self._socket.close()

    async def _listen(self):
        while True:
            peer, _ = await asyncio.get_running_loop().sock_accept(self._socket)
            self._start(self._take(peer))

    async def _take(self, peer):
        loop = asyncio.get_running_loop()
        try:
            told = await _proxy_header(peer)
            reader = asyncio.StreamReader(limit=LIMIT)
            protocol = asyncio.StreamReaderProtocol(reader, lambda reader, writer: self._accept(reader, writer, {"proxy": told}))
            await loop.connect_accepted_socket(lambda: protocol, peer, ssl=self._tls)
        except (OSError, ssl.SSLError, EOFError):
            peer.close()


async def _proxy_header(peer):
    """Reads just the header, of either version; says its version and what it is of."""
    head = await _exactly(peer, 12)
    if head == b"\r\n\r\n\0\r\nQUIT\n":
        kind = await _exactly(peer, 4)
        await _exactly(peer, int.from_bytes(kind[2:], "big"))
        return f"v{kind[0] >> 4} command {kind[0] & 15} family {kind[1]:#x}"
    while not head.endswith(b"\r\n"):
        head += await _exactly(peer, 1)
    return "v1 " + head.split(b" ")[1].decode("latin-1")


async def _exactly(peer, length):
    data = b""
    while len(data) < length:
        piece = await asyncio.get_running_loop().sock_recv(peer, length - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data
