"""Serves a real configuration by both proxies and compares what one request gets: the status, or how the connection ends.

Hosts are scripted upstreams on loopback, as in the cases of `cases/corpus`, which look closer at some of these files. It judges
only what both proxies serve: a file that Envoy itself cannot start here (it waits for a control plane) says nothing.
"""

import shutil

import yaml

from . import corpus_config, process, side
from .case import Case, _Loader
from .process import free_port
from .upstream import Upstreams

START_SECONDS = 6


class NotServed(Exception):
    """The file cannot be tried here; says why."""


def case_of(name, text):
    """The case that sends one request to the file's first plain HTTP listener."""
    config = yaml.load(text, _Loader)
    listeners = (config.get("static_resources") or {}).get("listeners") or []
    for listener in listeners:
        address = (listener.get("address") or {}).get("socket_address") or {}
        if "port_value" not in address or listener.get("additional_addresses") or str(address.get("protocol", "TCP")).upper() != "TCP":
            raise NotServed("a listener that is no TCP port")
    for number, listener in enumerate(listeners):
        host = _virtual_host(listener)
        if host:
            port = "listen" if number == 0 else f"listen{number + 1}"
            request = {"GET": _path(host), "host": str(host["domains"][0]).replace("*", "probe"), "port": port, "deadline": 4}
            try:
                body = corpus_config.place({"why": name, "requests": [request]}, config, ["health_checks"])
            except (KeyError, TypeError, AttributeError) as error:
                raise NotServed(f"hosts that are no addresses ({error!r})")
            return Case.of(name, body)
    raise NotServed("no plain HTTP listener with routes of its own")


def _virtual_host(listener):
    """The first virtual host of a chain without TLS; None when there is none."""
    for chain in [*(listener.get("filter_chains") or []), listener.get("default_filter_chain") or {}]:
        for network_filter in chain.get("filters") or []:
            config = network_filter.get("typed_config") or {}
            hosts = (config.get("route_config") or {}).get("virtual_hosts")
            if "HttpConnectionManager" in str(config.get("@type")) and hosts and "transport_socket" not in chain:
                return hosts[0] if isinstance(hosts, list) else hosts
    return None


def _path(host):
    """A path that the first route of the host with a plain one takes."""
    routes = host.get("routes") or []
    for route in routes if isinstance(routes, list) else [routes]:
        match = route.get("match") or {}
        found = match.get("path") or match.get("prefix") or match.get("path_separated_prefix")
        if found:
            return found
    return "/"


async def probe(name, text, binaries, directory):
    """(what the oracle answers, what the subject answers); NotServed when the oracle does not serve the file."""
    case = case_of(name, text)
    process.START_SECONDS = START_SECONDS
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    ports = {"admin": free_port(), "listen": free_port(), **{one: free_port() for one in case.get("ports", [])}}
    try:
        async with Upstreams(case.get("upstreams", {})) as upstreams:
            answers = []
            for binary in binaries:
                (seen,) = await side.run_group([case], binary, upstreams, ports, directory)
                upstreams.drop_connections()
                answers.append(_short(seen))
                if answers[0] is None:
                    raise NotServed("Envoy does not start with it here")
            return answers
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _short(seen):
    if not seen.get("started") or not seen.get("ran", True):
        return None
    response = seen["requests"][0]["response"]
    return response.get("status", response.get("end"))
