"""Runs a case's steps against one running proxy and returns what was seen: responses, and what the upstreams were sent.

A step is data; this file is the only place that knows the words of a step. It compares nothing.
"""

import asyncio
import collections
import json
import re
import time

import yaml

from . import client_h2, client_tls
from .client_h1 import H1Client, request_bytes
from .client_h2 import H2Client
from .template import substitute
from .upstream import parts, text

DEADLINE = 8.0
METHOD = re.compile(r"[A-Z][A-Z-]*")


class StepError(Exception):
    """A step that says nothing this harness knows."""


class Script:
    def __init__(self, proxy, upstreams, ports, directory):
        self.proxy, self.upstreams, self.ports, self.directory = proxy, upstreams, ports, directory
        self.connections, self.sessions = {}, {}

    async def run(self, steps):
        seen = []
        for index, step in enumerate(steps):
            step = substitute(step, self.ports)
            self.upstreams.step = index
            self.upstreams.script = [*parts(step["up"])] if "up" in step else []
            start = time.monotonic()
            try:
                outcome = await asyncio.wait_for(self.step(step), step.get("deadline", DEADLINE))
            except TimeoutError:
                outcome = {"end": "timeout: no whole answer"}
            except (ConnectionError, OSError) as error:
                outcome = {"end": f"no connection: {type(error).__name__}"}
            except (ValueError, IndexError, asyncio.LimitOverrunError) as error:
                outcome = {"end": f"not to be read: {type(error).__name__}: {error}"}
            if "settle" in step:
                await asyncio.sleep(step["settle"])
            seen.append({"response": outcome, "seconds": time.monotonic() - start - step.get("settle", 0)})
        await self.close()
        for record in self.upstreams.records:
            seen[record.step].setdefault("upstream", []).append(record)
        return seen

    async def close(self):
        for connection in self.connections.values():
            connection.close()
        self.connections.clear()
        await asyncio.sleep(0.03)

    async def step(self, step):
        if "repeat" in step:
            return await self._repeat(step)
        for word in ("parallel", "pipeline", "raw", "tcp", "h2_frames", "admin", "sleep", "write", "await", "close", "goaway", "zone", "asked"):
            if word in step:
                return await getattr(self, "_" + word)(step)
        method = next((key for key in step if METHOD.fullmatch(key)), None)
        if method is None:
            raise StepError(f"a step with none of the known words: {step}")
        return await self._request(step, method)

    async def _request(self, step, method):
        kind = H2Client if step.get("h2") else H1Client
        connection = await self._connection(step, kind)
        host = step.get("host", "example.com")
        try:
            if kind is H2Client:
                return await connection.exchange(step, method, step[method], host, step.get("scheme", "http"))
            response = await connection.exchange(step, method, request_bytes(step, method, step[method], host))
            if (session := (step.get("tls") or {}).get("session")) and "status" in response:
                response["tls"] = self.sessions[session].keep(connection.writer)
            return response
        finally:
            if "conn" not in step:
                connection.close()

    async def _connection(self, step, kind):
        """The connection that the step names, opened at its first use; a fresh one when it names none."""
        name = step.get("conn")
        if name in self.connections:
            return self.connections[name]
        port = self.ports[step.get("port", "listen")]
        more = {"settings": {int(key): value for key, value in step["settings"].items()}} if "settings" in step else {}
        if session := (step.get("tls") or {}).get("session"):
            more["context"] = self.sessions.setdefault(session, client_tls.context(step["tls"]))
        connection = await kind.open(port, step.get("local"), step.get("tls"), step.get("proxy_header"), **more)
        if name is not None:
            self.connections[name] = connection
        return connection

    async def _close(self, step):
        for name in parts(step["close"]):
            self.connections.pop(name).close()
        await asyncio.sleep(0.05)
        return {}

    async def _goaway(self, step):
        """Waits for a GOAWAY on an open HTTP/2 connection; a step of its own, since its time is its own."""
        session = self.connections[step["goaway"]].session
        while session.goaway is None and not session._task.done():
            await asyncio.sleep(0.02)
        return {"code": session.goaway}

    async def _repeat(self, step):
        """Many equal requests (`vary: header` numbers them); what is kept is how often each outcome came."""
        counts, width = collections.Counter(), step.get("width", 1)
        before = len(self.upstreams.records)
        limit = asyncio.Semaphore(width)

        async def one(number):
            async with limit:
                one_step = {key: value for key, value in step.items() if key != "repeat"}
                if "vary" in step:
                    one_step["headers"] = {**step.get("headers", {}), step["vary"]: f"v{number}"}
                return await self.step(one_step)

        responses = await asyncio.gather(*(one(number) for number in range(step["repeat"])))
        counted = step.get("count", "upstream")
        if counted == "upstream":
            counts.update(f"{record.cluster}.{record.host}" for record in self.upstreams.records[before:])
            del self.upstreams.records[before:]
        else:
            del self.upstreams.records[before:]
            for response in responses:
                counts[str(dict(map(tuple, response.get("headers", []))).get(counted, response.get(counted)))] += 1
        return {"counts": dict(sorted(counts.items()))}

    async def _parallel(self, step):
        async def one(inner, delay):
            await asyncio.sleep(delay)
            try:
                return await asyncio.wait_for(self.step(inner), inner.get("deadline", DEADLINE))
            except TimeoutError:
                return {"end": "timeout: no whole answer"}

        gap = step.get("gap", 0)
        steps = [inner for inner in step["parallel"] for _ in range(inner.get("times", 1))]
        answers = await asyncio.gather(*(one(inner, gap * number) for number, inner in enumerate(steps)))
        if step.get("any_order"):
            answers = sorted(answers, key=lambda answer: (answer.get("status", 0), json.dumps(answer, sort_keys=True)))
        return {"parallel": answers}

    async def _pipeline(self, step):
        """All requests in one write, then as many responses."""
        connection = await self._connection(step, H1Client)
        whole, methods = b"", []
        for inner in step["pipeline"]:
            method = next(key for key in inner if METHOD.fullmatch(key))
            methods.append(method)
            whole += b"".join(text(piece) for piece in request_bytes(inner, method, inner[method], inner.get("host", "example.com")))
        connection.writer.write(whole)
        answers = [await connection.read_response(method) for method in methods]
        if "conn" not in step:
            connection.close()
        return {"pipeline": answers}

    async def _raw(self, step):
        """Bytes as written; `responses` answers are read, then whether the proxy closes."""
        connection = await self._connection(step, H1Client)
        methods = parts(step.get("method", "GET"))
        sender = asyncio.create_task(connection.send(parts(step["raw"])))
        try:
            answers = []
            for number in range(step.get("responses", 1)):
                answer = await connection.read_response(methods[min(number, len(methods) - 1)])
                answers.append(answer)
                if answer["end"] != "complete":
                    break
            if answers and step.get("wait_close", True) and answers[-1]["end"] == "complete":
                answers[-1]["closed"] = await connection.at_end(step.get("close_within", 1.5))
            return answers[0] if len(answers) == 1 else {"answers": answers}
        finally:
            sender.cancel()
            if "conn" not in step:
                connection.close()

    async def _tcp(self, step):
        connection = await self._connection(step, H1Client)
        try:
            return await connection.run(step["tcp"])
        finally:
            if "conn" not in step:
                connection.close()

    async def _h2_frames(self, step):
        connection = await H1Client.open(self.ports[step.get("port", "listen")])
        data, end = b"", "open"
        try:
            connection.writer.write(client_h2.frames(step["h2_frames"]))
            end_at = time.monotonic() + step.get("for", 0.5)
            while (left := end_at - time.monotonic()) > 0:
                piece = await asyncio.wait_for(connection.reader.read(65536), left)
                if not piece:
                    end = "closed"
                    break
                data += piece
        except TimeoutError:
            pass
        except ConnectionError:
            end = "reset"
        finally:
            connection.close()
        return {"frames": client_h2.read_frames(data), "end": end}

    async def _admin(self, step):
        """`show`: text (default), names (before the first `:`), lines (`matching`), json, keys (of JSON, to `depth`), types (of config_dump), status."""
        status, headers, body = await self.proxy.admin(step["admin"], step.get("method", "GET"))
        shown = {"status": status}
        kind = step.get("show", "text")
        if kind == "text":
            shown["body"] = body
        elif kind == "lines":
            pattern = re.compile(step.get("matching", ""))
            shown["lines"] = sorted({line for line in body.splitlines() if pattern.search(line)})
        elif kind == "names":
            pattern = re.compile(step.get("matching", ""))
            shown["names"] = sorted({line.split(": ")[0] for line in body.splitlines() if pattern.search(line)})
        elif kind == "keys":
            shown["keys"] = sorted(_keys(json.loads(body), step.get("depth", 1)))
        elif kind == "json":
            shown["json"] = json.loads(body)
        elif kind == "types":
            shown["types"] = sorted({found for found in re.findall(r'"@type": ?"([^"]+)"', body)})
        if "content_type" in step:
            shown["content_type"] = next((line.split(": ", 1)[1] for line in headers if line.lower().startswith("content-type")), None)
        return shown

    async def _zone(self, step):
        """Changes names of a name server; it forgets what it was asked."""
        for name, zone in step["zone"].items():
            server = self.upstreams.name_servers[name]
            server.zone.update(zone)
            server.asked.clear()
        return {}

    async def _asked(self, step):
        """What a name server or a control plane was asked, each once."""
        if step["asked"] in self.upstreams.control_planes:
            asked = self.upstreams.control_planes[step["asked"]].asked
            return {"asked": [one for number, one in enumerate(asked) if one not in asked[:number]]}
        return {"asked": sorted(set(self.upstreams.name_servers[step["asked"]].asked))}

    async def _sleep(self, step):
        await asyncio.sleep(step["sleep"])
        return {}

    async def _write(self, step):
        """A file that the proxy watches, replaced by a move as Envoy wants it."""
        write_file(self.directory, step["write"], step["content"])
        return {}

    async def _await(self, step):
        """Waits until a statistic has a value (`at_least`), instead of sleeping."""
        while True:
            stats = await self.proxy.stats()
            value = stats.get(step["await"])
            if value is not None and (value == step["is"] if "is" in step else value >= step["at_least"]):
                return {}
            await asyncio.sleep(0.05)


def write_file(directory, name, content):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    fresh.rename(path)


def _keys(value, depth, prefix=""):
    """Paths of an object's keys; all elements of a list count as one."""
    if isinstance(value, list):
        return {path for one in value for path in _keys(one, depth, prefix + "[]")}
    if not isinstance(value, dict) or depth == 0:
        return {prefix} if prefix else set()
    return {path for key, one in value.items() for path in ({f"{prefix}.{key}".lstrip(".")} | _keys(one, depth - 1, f"{prefix}.{key}".lstrip(".")))}
