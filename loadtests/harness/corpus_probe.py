"""Serves a real configuration by both proxies and compares what requests get: the answer, how each connection was made, handshakes.

Hosts are scripted upstreams on loopback, as in the cases of `cases/corpus`, which look closer at some of these files. It judges
only what both proxies serve: a file that Envoy itself cannot start here says nothing. A file with TLS contexts is served twice: whole,
and only its clusters and listeners that have one, so that a feature elsewhere in the file hides none. Health checks are left out, and
so are times to connect of a quarter of a second, which a busy machine runs into.
"""

import copy
import json
import re
import shutil

from . import corpus_config, corpus_tls, process, side
from .case import Case, _Loader
from .process import free_port
from .upstream import Upstreams

START_SECONDS = 6
MOST_PATHS = 8
SPREAD = 24  # requests of each kind where chance picks cluster or host: each is met, but for a chance in a million


class NotServed(Exception):
    """The file cannot be tried here; says why."""


def cases_of(name, text):
    """{"whole" | "upstream TLS" | "downstream TLS": the case, or why there is none}."""
    config = corpus_config.read(text, _Loader)
    made = {"whole": _whole}
    static = config.get("static_resources") or {}
    if any(corpus_tls.has_context(cluster) for cluster in static.get("clusters") or []):
        made["upstream TLS"] = _upstream_part
    if any(corpus_tls.has_context(listener) for listener in static.get("listeners") or []):
        made["downstream TLS"] = _downstream_part
    found = {}
    for kind, make in made.items():
        try:
            found[kind] = make(name, copy.deepcopy(config))
        except NotServed as error:
            found[kind] = str(error)
        except (KeyError, TypeError, AttributeError) as error:  # one odd file must not hide the others
            found[kind] = f"a configuration that is not to be moved ({error!r})"
    return found


def _whole(name, config):
    """A request to the first plain HTTP listener; with TLS in the file, to several of its routes and to each listener with TLS."""
    listeners = (config.get("static_resources") or {}).get("listeners") or []
    for listener in listeners:
        address = (listener.get("address") or {}).get("socket_address") or {}
        if "port_value" not in address or listener.get("additional_addresses") or str(address.get("protocol", "TCP")).upper() != "TCP":
            raise NotServed("a listener that is no TCP port")
    tls = corpus_tls.has_context(config)
    requests = [step for number, listener in enumerate(listeners) for step in _requests(listener, number, MOST_PATHS if tls else 1)]
    if not tls:
        requests = [step for step in requests if "tls" not in step][:1]
    if not requests and not corpus_tls.control_planes(config):
        raise NotServed("no plain HTTP listener with routes of its own")
    return _case(name, config, requests)


def _upstream_part(name, config):
    """The clusters with a TLS context, each behind a route of its own."""
    clusters = [one["name"] for one in config["static_resources"]["clusters"] if corpus_tls.has_context(one)]
    routes = [{"match": {"prefix": f"/{number}"}, "route": {"cluster": cluster}} for number, cluster in enumerate(clusters)]
    planes = corpus_tls.control_planes([one for one in config["static_resources"]["clusters"] if one["name"] in clusters])
    requests = [{"GET": f"/{number}", "deadline": 4} for number in range(len(clusters))]
    return _case(name, corpus_config.part({"routes": routes}, config, {"clusters": [*clusters, *planes]}), requests)


def _downstream_part(name, config):
    """The listeners with a TLS context, and the clusters that they name."""
    listeners = [one for one in config["static_resources"]["listeners"] if corpus_tls.has_context(one)]
    quoted = {word for words in map(str, listeners) for word in re.findall(r"'([^']*)'", words)}
    clusters = [one["name"] for one in config["static_resources"].get("clusters") or [] if one["name"] in quoted]
    requests = [step for number, listener in enumerate(listeners) for step in _requests(listener, number, MOST_PATHS)]
    return _case(name, corpus_config.part({}, config, {"clusters": clusters, "listeners": [one["name"] for one in listeners]}), requests)


def _case(name, config, requests):
    body = {"why": name, "requests": requests, "stats": [r"ssl\.handshake$"]}
    body = corpus_config.place(body, config, ["health_checks", "connect_timeout"])
    upstreams = body["upstreams"].items()
    tls = any("tls_hosts" in one for _, one in upstreams)
    if "weighted_clusters" in str(config) or tls and any(one["hosts"] > 1 for _, one in upstreams):
        requests = [step for step in requests for _ in range(SPREAD)]
    body["requests"] = [*requests, *({"asked": name} for name, one in upstreams if one.get("protocol") == "xds")]
    return Case.of(name, body)


def _requests(listener, number, most):
    """Requests to the routes of a listener's first chain that has a virtual host, over TLS where that chain ends it."""
    for chain in [*(listener.get("filter_chains") or []), listener.get("default_filter_chain") or {}]:
        host, tls = _virtual_host(chain), {}
        if corpus_tls.has_context(chain.get("transport_socket")):
            names = (chain.get("filter_chain_match") or {}).get("server_names") or ["example.com"]
            certificate = {"cert": "@certs@/client.crt", "key": "@certs@/client.key"}
            tls = {"tls": {"sni": names[0].replace("*", "probe"), **certificate}}
        if host and ("transport_socket" not in chain or tls):
            to = {"host": str(host["domains"][0]).replace("*", "probe"), "port": "listen" if number == 0 else f"listen{number + 1}", "deadline": 4}
            return [{"GET": path, **to, **tls} for path in _paths(host)[:most]]
    return []


def _virtual_host(chain):
    """The first virtual host of a chain; None when there is none."""
    for network_filter in chain.get("filters") or []:
        config = network_filter.get("typed_config") or {}
        hosts = (config.get("route_config") or {}).get("virtual_hosts")
        if "HttpConnectionManager" in str(config.get("@type")) and hosts:
            return hosts[0] if isinstance(hosts, list) else hosts
    return None


def _paths(host):
    """Paths that the host's routes with a plain one take, each once."""
    routes = host.get("routes") or []
    found = []
    for route in routes if isinstance(routes, list) else [routes]:
        match = route.get("match") or {}
        found.append(match.get("path") or match.get("prefix") or match.get("path_separated_prefix"))
    return list(dict.fromkeys(filter(None, found))) or ["/"]


async def probe(case, binaries, directory):
    """What the oracle answers, and what the subject does; NotServed when the oracle does not serve the file."""
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
                if not seen.get("started") or not seen.get("ran", True):
                    if not answers:
                        raise NotServed(f"Envoy does not start with it here: {_last(seen['said'])}")
                    answers.append({"not served": _last(seen["said"])})
                else:
                    answers.append(_outcome(case, seen))
            return answers
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _last(said):
    return said.strip().splitlines()[-1][-300:]


def _outcome(case, seen):
    """Each different answer once, with the connection that it came over upstream; and how many handshakes there were."""
    answers = set()
    for step, one in zip(case.get("requests"), seen["requests"]):
        response = one["response"]
        if "asked" in response:
            answers.update(f"{step['asked']} asked for {_line(asked)}" for asked in response["asked"])
            continue
        told = [response.get("status", response.get("end")), response.get("body", "")]
        made = {_line(_named(record.get("connection", {}))) for records in one["upstream"].values() for record in records}
        answers.add(f"{'tls ' * ('tls' in step)}{step['GET']}: {_line(told)}" + "".join(f" over {line}" for line in sorted(made) if line != "{}"))
    return {"answers": sorted(answers), "handshakes": {name: count for name, count in seen["stats"].items() if count}}


def _named(connection):
    """An address is no name (RFC 6066, 3): Envoy sends one as SNI where it is told to, rustls never does (`corpus/address_as_sni`)."""
    return {**connection, "sni": None} if re.fullmatch(r"[0-9.]+", connection.get("sni") or "") else connection


def _line(value):
    return json.dumps(value, sort_keys=True)
