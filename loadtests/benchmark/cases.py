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


def _wrk(path, size, connections=50, request=""):
    return lambda port, seconds, directory: load.wrk(f"http://127.0.0.1:{port}{path}", connections, seconds, directory, request, size)


def _h2load(path, size, connections=10, streams=10, extra=()):
    return lambda port, seconds, directory: load.h2load(f"http://127.0.0.1:{port}{path}", connections, streams, seconds, directory, extra, size)


UPLOAD = 'wrk.method = "POST"; wrk.body = string.rep("x", 1048576)'

CASES = [
    Case("h1-100", "HTTP/1 keep-alive, 100 B, 50 connections", _wrk("/r500/100", 100), must=0.6),
    Case("h1-64k", "HTTP/1 keep-alive, 64 KiB response, 50 connections", _wrk("/r500/65536", 65536), "/r500/65536", 65536, must=0.75),
    Case("h2c-h1", "h2c -> HTTP/1, 100 B, 10 connections x 10 streams", _h2load("/r500/100", 100), must=0.5, h2_downstream=True),
    Case("upload-1m", "HTTP/1, 1 MiB upload, 20 connections", _wrk("/r500/100", 100, 20, UPLOAD)),
    Case("h1-one-route", "as h1-100 with a single route", _wrk("/r0/100", 100), path="/r0/100", routes=1),
]


def envoy_config(case, ports, log):
    """One listener, `routes` prefix routes to one cluster, an access log to a file, all stats."""
    routes = [{"match": {"prefix": f"/r{number}/"}, "route": {"cluster": "up"}} for number in range(case.routes)]
    manager = {
        "@type": TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "access_log": [{"name": "file", "typed_config": {"@type": TYPE + "access_loggers.file.v3.FileAccessLog", "path": str(log)}}] if log else [],
        "route_config": {"name": "routes", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": TYPE + "filters.http.router.v3.Router"}}],
    }
    listener = {
        "name": "listener",
        "address": loopback(ports["listen"]),
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }
    cluster = {
        "name": "up",
        "connect_timeout": "1s",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "up", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": loopback(ports["up"])}}]}]},
    }
    return {"admin": {"address": loopback(ports["admin"])}, "static_resources": {"listeners": [listener], "clusters": [cluster]}}
