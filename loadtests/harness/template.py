"""Expands a case's short fragments into a full Envoy bootstrap.

A case says what it is about (`routes`, `hcm`, `http_filters`, `clusters`, ...); all that is the same everywhere (listener,
connection manager, router, admin, access log) stands here once. It knows Envoy's configuration, not how it is run.
"""

import re

WITH_LOGS = True  # `differential.py --without log` compares all but the access log
TYPE = "type.googleapis.com/envoy.extensions."
LOG_FORMAT = (
    "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL% %RESPONSE_CODE% flags=%RESPONSE_FLAGS% "
    "details=%RESPONSE_CODE_DETAILS% rx=%BYTES_RECEIVED% tx=%BYTES_SENT% host=%UPSTREAM_HOST% cluster=%UPSTREAM_CLUSTER% "
    "route=%ROUTE_NAME% attempts=%UPSTREAM_REQUEST_ATTEMPT_COUNT% failure=%UPSTREAM_TRANSPORT_FAILURE_REASON%"
)
TCP_LOG_FORMAT = (
    "tcp flags=%RESPONSE_FLAGS% details=%RESPONSE_CODE_DETAILS% end=%CONNECTION_TERMINATION_DETAILS% rx=%BYTES_RECEIVED% "
    "tx=%BYTES_SENT% host=%UPSTREAM_HOST% cluster=%UPSTREAM_CLUSTER% failure=%UPSTREAM_TRANSPORT_FAILURE_REASON%"
)

# Short filter names of a case, where the message is not `filters.<kind>.<name>.v3.<CamelName>`.
MESSAGES = {
    "http.rbac": "RBAC",
    "http.cors": "Cors",
    "http.fault": "HTTPFault",
    "http.local_ratelimit": "LocalRateLimit",
    "http.csrf": "CsrfPolicy",
    "http.set_filter_state": "Config",
    "http.set_metadata": "Config",
    "http.grpc_stats": "FilterConfig",
    "http.grpc_http1_bridge": "Config",
    "http.jwt_authn": "JwtAuthentication",
    "http.lua": "Lua",
    "network.rbac": "RBAC",
    "network.direct_response": "Config",
    "network.local_ratelimit": "LocalRateLimit",
    "network.set_filter_state": "Config",
    "listener.set_filter_state": "Config",
}


def bootstrap(case, ports):
    """The whole bootstrap of `case`, with `ports` filled in: {"admin", "listen", ...: port, upstream name: [ports]}."""
    config = case["config"] if "config" in case else bootstrap_of(case)
    config = merge({"admin": {"address": loopback("@admin@")}}, config)
    return substitute(merge(config, case.get("bootstrap", {})), ports)


def bootstrap_of(case):
    """What the fragments of `case` make, places not yet filled in."""
    static = {"listeners": _listeners(case), "clusters": _clusters(case)}
    return {"static_resources": {**static, "secrets": case["secrets"]} if "secrets" in case else static}


def loopback(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _listeners(case):
    if "listeners" in case:
        return [_listener(case, one) for one in case["listeners"]]
    return [_listener(case, case.get("listener", {}))]


def _listener(case, own):
    """One listener; `filters` is the chain (default: the connection manager), `filter_chains` replaces it."""
    own = dict(own)
    chains = own.pop("filter_chains", [{"filters": own.pop("filters", case.get("filters", [{"hcm": {}}]))}])
    default_chain = own.pop("default_filter_chain", None)
    base = {"name": "listener", "address": loopback("@listen@"), "filter_chains": [_chain(case, chain) for chain in chains]}
    if default_chain:
        base["default_filter_chain"] = _chain(case, default_chain)
    listener_filters = own.pop("listener_filters", case.get("listener_filters"))
    if listener_filters:
        base["listener_filters"] = [_filter("listener", one) for one in listener_filters]
    return merge(base, own)


def _chain(case, chain):
    return {**chain, "filters": [_network_filter(case, one) for one in chain.get("filters", [])]}


def _network_filter(case, entry):
    name, config = _short(entry)
    if name == "hcm":
        return _filter("network", {"http_connection_manager": _hcm(case, config)})
    if name == "tcp_proxy":
        config = merge({"stat_prefix": "tcp", "access_log": access_logs(TCP_LOG_FORMAT)}, config)
    return _filter("network", {name: config} if name else entry)


def _hcm(case, own):
    own = merge(case.get("hcm", {}), own)
    filters = [_filter("http", one) for one in [*own.pop("http_filters", case.get("http_filters", [])), {"router": case.get("router", {})}]]
    base = {
        "stat_prefix": "ingress",
        "delayed_close_timeout": "0.05s",  # Envoy waits a second before it closes after an error: too long for many cases.
        "access_log": access_logs(case.get("log_format", LOG_FORMAT)),
        "http_filters": filters,
    }
    if not {"rds", "scoped_routes", "route_config"} & set(own):
        base["route_config"] = route_config(case)
    return merge(base, own)


def route_config(case):
    host = {"name": "default", "domains": ["*"], "routes": case.get("routes", [{"match": {"prefix": "/"}, "route": {"cluster": "up"}}])}
    if "matcher" in case.get("virtual_host", {}):
        del host["routes"]
    hosts = case.get("virtual_hosts", [merge(host, case.get("virtual_host", {}))])
    return merge({"name": "routes", "virtual_hosts": hosts}, case.get("route_config", {}))


def access_logs(text):
    """The file log of every case; none when the whole run is without logs."""
    config = {
        "@type": TYPE + "access_loggers.file.v3.FileAccessLog",
        "path": "@log@",
        "log_format": {"text_format_source": {"inline_string": text + "\n"}},
    }
    return [{"name": "envoy.access_loggers.file", "typed_config": config}] if WITH_LOGS else []


def _short(entry):
    """`{cors: {...}}` -> ("cors", {...}); a full filter has a `name` and stays as it is."""
    if "name" in entry:
        return None, entry
    (name, config), = entry.items()
    return name, config or {}


def _filter(kind, entry):
    name, config = _short(entry)
    if name is None:
        return entry
    message = MESSAGES.get(f"{kind}.{name}") or "".join(part.capitalize() for part in name.split("_"))
    folder = {"listener": "filters.listener", "http": "filters.http", "network": "filters.network"}[kind]
    prefix = {"listener": "envoy.filters.listener.", "http": "envoy.filters.http.", "network": "envoy.filters.network."}[kind]
    return {"name": prefix + name, "typed_config": {"@type": f"{TYPE}{folder}.{name}.v3.{message}", **config}}


def _clusters(case):
    """A cluster for each upstream, and those that only the case names (they have no hosts unless it gives some)."""
    own, made = case.get("clusters", {}), []
    for name, upstream in case.get("upstreams", {"up": {}}).items():
        if own.get(name, {}) is not None and (upstream or {}).get("protocol") != "dns":
            made.append(merge(_cluster_of_upstream(name, upstream or {}), own.get(name, {})))
    for name, cluster in own.items():
        if name not in case.get("upstreams", {"up": {}}) and cluster is not None:
            made.append(merge({"name": name, "connect_timeout": "1s"}, cluster))
    return made


def _cluster_of_upstream(name, upstream):
    hosts = upstream.get("hosts", 1)
    endpoints = [{"endpoint": {"address": loopback(f"@{name}.{index}@")}} for index in range(hosts)]
    cluster = {
        "name": name,
        "connect_timeout": "1s",
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    }
    if upstream.get("protocol") == "h2":
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": TYPE + "upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    return cluster


def merge(base, over):
    """`over` on top of `base`: mappings merge, anything else replaces; a null takes the key away."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    whole = dict(base)
    for key, value in over.items():
        if value is None:
            whole.pop(key, None)
        else:
            whole[key] = merge(whole[key], value) if key in whole else value
    return whole


_PLACE = re.compile(r"@([a-z_][a-z0-9_-]*)(?:\.(\d+))?@")


def substitute(value, places):
    """Fills in `@listen@`, `@up@`, `@up.1@`, `@dir@`, `@log@`, `@certs@`; and `{'@': x}` is short for the `@type` of an extension."""
    if isinstance(value, dict):
        whole = {substitute(key, places): substitute(one, places) for key, one in value.items() if key != "@"}
        return {"@type": TYPE + value["@"], **whole} if "@" in value else whole
    if isinstance(value, list):
        return [substitute(one, places) for one in value]
    if not isinstance(value, str):
        return value
    alone = _PLACE.fullmatch(value)
    if alone and alone[1] in places:
        return _place(alone, places)
    return _PLACE.sub(lambda found: str(_place(found, places)) if found[1] in places else found[0], value)


def _place(found, places):
    value = places[found[1]]
    return value[int(found[2] or 0)] if isinstance(value, list) else value
