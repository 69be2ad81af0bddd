"""The scripted name server of a case (`protocol: dns`): it answers A and AAAA queries from the case's zone, over UDP and TCP.

`zone: {name: {A: [...], AAAA: [...], ttl: 60, code: 2, silent: true}}`; what is not there does not exist. It remembers what was
asked. It knows only as much of the wire protocol as that takes.
"""

import asyncio
import socket
import struct

TYPES = {1: "A", 28: "AAAA"}
NAME_ERROR = 3


class NameServer(asyncio.DatagramProtocol):
    def __init__(self, zone):
        self.first, self.asked = zone, []
        self.reset()

    def reset(self):
        """The zone as before the first step."""
        self.zone = dict(self.first)

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        answer = self.answer(data, "udp")
        if answer is not None:
            self.transport.sendto(answer, peer)

    async def serve_tcp(self, reader, writer):
        try:
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                answer = self.answer(await reader.readexactly(length), "tcp")
                if answer is not None:
                    writer.write(struct.pack("!H", len(answer)) + answer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # Nobody asks any more.
        finally:
            writer.close()

    def answer(self, query, way):
        """The answer to a query; None for one that is left unanswered."""
        name, end = _question(query)
        kind = TYPES.get(struct.unpack("!H", query[end : end + 2])[0], "other")
        self.asked.append(f"{name} {kind} {way}")
        found = self.zone.get(name, {"code": NAME_ERROR})
        if found.get("silent"):
            return None
        truncated = 0x0200 if found.get("only_tcp") and way == "udp" else 0
        records = [] if truncated else [_record(found, address) for address in found.get(kind, [])]
        head = query[:2] + struct.pack("!HHHHH", 0x8580 | truncated | found.get("code", 0), 1, len(records), 0, 0)
        return head + query[12 : end + 4] + b"".join(records)


def _question(query):
    """(name in lower case, where it ends)."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("latin-1").lower())
        at += 1 + length
    return ".".join(labels), at + 1


def _record(found, address):
    family, number = (socket.AF_INET6, 28) if ":" in address else (socket.AF_INET, 1)
    data = socket.inet_pton(family, address)
    return struct.pack("!HHHIH", 0xC00C, number, 1, found.get("ttl", 60), len(data)) + data


async def start(zone, port):
    """A running name server, and what must be closed in the end."""
    server = NameServer(zone)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: server, local_addr=("127.0.0.1", port))
    tcp = await asyncio.start_server(server.serve_tcp, "127.0.0.1", port)
    return server, [transport, tcp]
