"""What the bench measures: each case is a configuration (Envoy's, the same file for all that speak it) and a load."""

import dataclasses

from harness.template import TYPE, loopback

from . import load

ROUTES = 1000


@dataclasses.dataclass
class Case:
    name: str
    what: str
    run: object  # (port, seconds, directory) -> result of load.*
    path: str = "/r500/100"
    size: int = 100
    routes: int = ROUTES
    must: float | None = None  # the CPU ratio to Envoy that issue 2 demands
    h2_downstream: bool = False
    tls: bool = False


def _wrk(path, size, connections=50, request=""):
    return lambda port, seconds, directory: load.wrk(f"http://127.0.0.1:{port}{path}", connections, seconds, directory, request, size)


def _h2load(path, size, connections=10, streams=10, extra=()):
    return lambda port, seconds, directory: load.h2load(f"http://127.0.0.1:{port}{path}", connections, streams, seconds, directory, extra, size)


def _wrk_tls(path, size, connections=50):
    return lambda port, seconds, directory: load.wrk(f"https://127.0.0.1:{port}{path}", connections, seconds, directory, "", size)


def _handshakes(version=()):
    return lambda port, seconds, directory: load.handshakes(port, seconds, version)


UPLOAD = 'wrk.method = "POST"; wrk.body = string.rep("x", 1048576)'

CASES = [
    Case("h1-100", "HTTP/1 keep-alive, 100 B, 50 connections", _wrk("/r500/100", 100), must=0.6),
    Case("h1-64k", "HTTP/1 keep-alive, 64 KiB response, 50 connections", _wrk("/r500/65536", 65536), "/r500/65536", 65536, must=0.75),
    Case("h2c-h1", "h2c -> HTTP/1, 100 B, 10 connections x 10 streams", _h2load("/r500/100", 100), must=0.5, h2_downstream=True),
    Case("upload-1m", "HTTP/1, 1 MiB upload, 20 connections", _wrk("/r500/100", 100, 20, UPLOAD)),
    Case("h1-one-route", "as h1-100 with a single route", _wrk("/r0/100", 100), path="/r0/100", routes=1),
    Case("tls-kept", "as h1-100 over TLS 1.3, ECDSA P-256", _wrk_tls("/r500/100", 100), must=0.6, tls=True),
    # 1.3 times as many for a second of CPU.
    Case("tls-full", "full handshakes, TLS 1.3, ECDSA P-256, 4 at a time; a request is a handshake", _handshakes(), must=0.77, tls=True),
    Case("tls12-full", "the same with TLS 1.2", _handshakes(("-tls1_2",)), must=0.77, tls=True),
]


def envoy_config(case, ports, log, certificate=None):
    """One listener, `routes` prefix routes to one cluster, an access log to a file, all stats; TLS with (chain, key) files."""
    routes = [{"match": {"prefix": f"/r{number}/"}, "route": {"cluster": "up"}} for number in range(case.routes)]
    manager = {
        "@type": TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "access_log": [{"name": "file", "typed_config": {"@type": TYPE + "access_loggers.file.v3.FileAccessLog", "path": str(log)}}] if log else [],
        "route_config": {"name": "routes", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": TYPE + "filters.http.router.v3.Router"}}],
    }
    chain = {"filters": [{"name": "hcm", "typed_config": manager}]}
    if certificate:
        pair = {name: {"filename": str(path)} for name, path in zip(("certificate_chain", "private_key"), certificate)}
        context = {"@type": TYPE + "transport_sockets.tls.v3.DownstreamTlsContext", "common_tls_context": {"tls_certificates": [pair]}}
        chain["transport_socket"] = {"name": "tls", "typed_config": context}
    listener = {
        "name": "listener",
        "address": loopback(ports["listen"]),
        "filter_chains": [chain],
    }
    cluster = {
        "name": "up",
        "connect_timeout": "1s",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "up", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": loopback(ports["up"])}}]}]},
    }
    return {"admin": {"address": loopback(ports["admin"])}, "static_resources": {"listeners": [listener], "clusters": [cluster]}}
