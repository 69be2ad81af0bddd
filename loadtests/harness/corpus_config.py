"""Turns a real configuration of the shared corpus into a case: its own listeners and clusters, on ports of this run.

Listener and admin addresses become loopback ports (`listen`, `listen2`, ...), each cluster's hosts become a scripted upstream of
the cluster's name, by address, since their names resolve nowhere here; a cluster that gives xDS becomes a scripted control plane.
Beyond that and what TLS needs (corpus_tls) nothing of the file is touched, but its keys are all written in snake_case.
"""

import ipaddress
import re

import yaml

from . import corpus_tls, environment
from .template import bootstrap_of, loopback, merge

ODD = {"ignoreHttp11Upgrade": "ignore_http_11_upgrade", "acceptHttp10": "accept_http_10", "defaultHostForHttp10": "default_host_for_http_10"}
OPAQUE = {"filter_metadata", "static_layer", "json_format", "value", "map"}  # what is below them are the user's own words


def path_of(name):
    """The corpus file, or None when the corpus is not here."""
    shared = environment.shared()
    path = shared / "corpus" / name if shared else None
    return path if path and path.exists() else None


def read(text, loader):
    """A configuration with its keys in snake_case; `@CORPUS@` is a folder that is made below the run's own."""
    return snake(yaml.load(text.replace("@CORPUS@", "/corpus"), loader))


def snake(value):
    """Protobuf's two spellings of a field as one."""
    if isinstance(value, list):
        return [snake(one) for one in value]
    if not isinstance(value, dict):
        return value
    made = {}
    for key, one in value.items():
        if re.fullmatch(r"[a-z]+[a-zA-Z0-9]*", str(key)):
            key = ODD.get(key) or re.sub(r"[A-Z]", lambda found: "_" + found[0].lower(), key)
        made[key] = one if key in OPAQUE else snake(one)
    return made


def expand(body, loader):
    """`corpus: {file, without: [cluster fields], only: {clusters, listeners}}` -> `config`, `upstreams` and `ports` of the case."""
    wanted = body["corpus"]
    if unknown := set(wanted) - {"file", "without", "only"} | set(wanted.get("only", {})) - {"clusters", "listeners"}:
        raise KeyError(f"no such words: {', '.join(sorted(unknown))}")
    config = read(path_of(wanted["file"]).read_text(), loader)
    if "only" in wanted:
        config = part(body, config, wanted["only"])
    return place(body, config, wanted.get("without", []))


def part(body, config, only):
    """The named clusters and listeners of a configuration alone, with its secrets; without a listener, one of the case's own."""
    static = config["static_resources"]
    chosen = {kind: [one for one in static.get(kind, []) if one.get("name") in only.get(kind, [])] for kind in ("clusters", "listeners")}
    absent = {name for names in only.values() for name in names} - {one["name"] for kind in chosen.values() for one in kind}
    if absent:
        raise KeyError(f"the file has no {', '.join(sorted(absent))}")
    if not chosen["listeners"]:
        chosen["listeners"] = bootstrap_of({**body, "upstreams": {}, "clusters": {}})["static_resources"]["listeners"]
    return {**({"node": config["node"]} if "node" in config else {}), "static_resources": {**chosen, "secrets": static.get("secrets") or []}}


def place(body, config, without):
    """A case of `body` and a whole configuration, its listeners and hosts moved to this run's ports."""
    config["admin"] = {"address": loopback("@admin@")}
    static, ports, upstreams = config["static_resources"], [], {}
    files, secrets = corpus_tls.fill(config)
    planes = corpus_tls.control_planes(config)
    for number, listener in enumerate(static.get("listeners") or []):
        name = "listen" if number == 0 else f"listen{number + 1}"
        listener["address"] = loopback(f"@{name}@")
        ports += [name] if number else []
    hosts = {"example.com", *(step.get("host", "example.com").split(":")[0] for step in body.get("requests", []))}
    for cluster in static.get("clusters") or []:
        for field in without:
            cluster.pop(field, None)
        name = _name(cluster["name"], upstreams)
        upstreams[name] = _upstream(cluster, name, sorted(hosts))
        if cluster["name"] in planes:
            upstreams[name].update(protocol="xds", secrets=secrets)
    whole = {**body, "config": config, "ports": [*ports, *body.get("ports", [])], "upstreams": merge(upstreams, body.get("upstreams", {}))}
    return {**whole, "files": {**files, **body.get("files", {})}} if files else whole


def _name(cluster, taken):
    """The upstream's name: the cluster's own, in the letters that places (`@name.0@`) may have."""
    name = re.sub(r"[^a-z0-9_-]", "-", cluster.lower())
    name = name if re.match(r"[a-z_]", name) else f"c{name}"
    return name if name not in taken else f"{name}-{len(taken)}"


def _upstream(cluster, name, hosts):
    """What the scripted upstream of `cluster` is; its endpoints' addresses are changed into that upstream's."""
    endpoints = [one for locality in (cluster.get("load_assignment") or {}).get("endpoints", []) for one in locality.get("lb_endpoints", [])]
    options = next(iter((cluster.get("typed_extension_protocol_options") or {}).values()), cluster)
    explicit = "http2_protocol_options" in str({**options, "auto_config": None})
    for number, one in enumerate(endpoints):
        _keep_hostname(cluster, one["endpoint"])
        one["endpoint"]["address"] = loopback(f"@{name}.{number}@")
        one["endpoint"].pop("health_check_config", None)
    described = [corpus_tls.server(cluster, one, hosts, True) for one in endpoints]
    h2 = explicit or "auto_config" in options and bool(described) and all(tls for tls, _ in described)
    made = {"hosts": len(endpoints), **({"protocol": "h2"} if h2 else {})}
    if any(tls for tls, _ in described):
        made["tls_hosts"] = [corpus_tls.server(cluster, one, hosts, h2)[0] for one in endpoints]
    if proxied := [number for number, (_, proxied) in enumerate(described) if proxied]:
        made["proxied_hosts"] = proxied
    return made


def _keep_hostname(cluster, endpoint):
    """A host found by DNS has its name as hostname: as it would have, had its address not been changed."""
    address = (endpoint["address"].get("socket_address") or {}).get("address", "")
    if str(cluster.get("type")).endswith("_DNS") or "cluster.dns" in str(cluster.get("cluster_type")):
        try:
            ipaddress.ip_address(address)
        except ValueError:
            endpoint.setdefault("hostname", address)
