"""Clients that ask over TLS all the while: on connections that they keep and on new ones, over HTTP/1 and HTTP/2.

What is kept is what each handshake was shown and when, and each request that was not answered as it should be. It judges nothing,
and knows nothing of what happens to the certificates meanwhile.
"""

import asyncio
import dataclasses
import ssl
import time

from .client_h1 import H1Client, request_bytes
from .client_h2 import H2Client
from .h2_session import H2Session

HOST = "example.com"
PAUSE = 0.02  # between requests of one kept connection: the machine also runs the proxy, and new ones cost more


@dataclasses.dataclass
class Handshake:
    begun: float
    done: float
    names: list  # the DNS names of the certificate that was presented


class Load:
    """`async with Load(port, ca)`: the clients run until the block is left; then all have ended."""

    def __init__(self, port, ca, kept=12, fresh=8):
        self.port, self.size = port, (kept, fresh)
        self.handshakes, self.failures, self.on_kept, self.on_new = [], [], 0, 0
        self._contexts = {h2: _context(ca, ["h2"] if h2 else ["http/1.1"]) for h2 in (False, True)}
        self._over = asyncio.Event()

    async def __aenter__(self):
        kept, fresh = self.size
        ready = [asyncio.Event() for _ in range(kept)]
        self._tasks = [asyncio.create_task(self._keep(number % 2 == 1, one)) for number, one in enumerate(ready)]
        await asyncio.wait_for(asyncio.gather(*(one.wait() for one in ready)), 30)
        self._tasks += [asyncio.create_task(self._renew(number % 2 == 1)) for number in range(fresh)]
        return self

    async def __aexit__(self, *_):
        self._over.set()
        await asyncio.gather(*self._tasks)

    async def _keep(self, h2, ready):
        """One connection, from before the first change to after the last: a failure ends it, and is not made good."""
        try:
            client = await self._open(h2)
        except OSError as error:
            self.failures.append(f"a connection to keep was not made: {error!r}")
            ready.set()
            return
        while not self._over.is_set() and await self._ask(client, h2, "kept"):
            self.on_kept += 1
            ready.set()
            await asyncio.sleep(PAUSE)
        ready.set()
        client.close()

    async def _renew(self, h2):
        while not self._over.is_set():
            try:
                client = await self._open(h2)
            except (OSError, TimeoutError) as error:
                self.failures.append(f"new connection ({'h2' if h2 else 'http/1'}): {error!r}")
                continue
            self.on_new += await self._ask(client, h2, "new")
            client.close()

    async def _open(self, h2):
        begun = time.monotonic()
        opening = asyncio.open_connection("127.0.0.1", self.port, ssl=self._contexts[h2], server_hostname=HOST)
        reader, writer = await asyncio.wait_for(opening, 10)
        names = [value for kind, value in writer.get_extra_info("peercert")["subjectAltName"] if kind == "DNS"]
        self.handshakes.append(Handshake(begun, time.monotonic(), names))
        client = H1Client(reader, writer)
        return H2Client(client, H2Session(reader, writer, client=True).start()) if h2 else client

    async def _ask(self, client, h2, which):
        """Whether the answer was whole and right."""
        asking = client.exchange({}, "GET", "/", HOST, "https") if h2 else client.exchange({}, "GET", request_bytes({}, "GET", "/", HOST))
        try:
            answer = await asyncio.wait_for(asking, 10)
        except (OSError, TimeoutError) as error:
            answer = {"end": repr(error)}
        good = (answer.get("status"), answer.get("body"), answer.get("end")) == (200, "served", "complete")
        if not good:
            self.failures.append(f"{which} connection ({'h2' if h2 else 'http/1'}): {answer}")
        return good


def _context(ca, alpn):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(ca)
    made.set_alpn_protocols(alpn)
    return made
