"""Turns a real configuration of the shared corpus into a case: its own listeners and clusters, on ports of this run.

Listener and admin addresses become loopback ports (`listen`, `listen2`, ...), each cluster's hosts become a scripted upstream of
the cluster's name, by address, since their names resolve nowhere here. Nothing else of the file is touched.
"""

import yaml

from . import environment
from .template import loopback, merge


def path_of(name):
    """The corpus file, or None when the corpus is not here."""
    shared = environment.shared()
    path = shared / "corpus" / name if shared else None
    return path if path and path.exists() else None


def expand(body, loader):
    """`corpus: {file, without: [cluster fields]}` -> `config`, `upstreams` and `ports` of the case."""
    wanted = body["corpus"]
    return place(body, yaml.load(path_of(wanted["file"]).read_text(), loader), wanted.get("without", []))


def place(body, config, without):
    """A case of `body` and a whole configuration, its listeners and hosts moved to this run's ports."""
    config["admin"] = {"address": loopback("@admin@")}
    static, ports, upstreams = config["static_resources"], [], {}
    for number, listener in enumerate(static.get("listeners", [])):
        name = "listen" if number == 0 else f"listen{number + 1}"
        listener["address"] = loopback(f"@{name}@")
        ports += [name] if number else []
    for cluster in static.get("clusters", []):
        for field in without:
            cluster.pop(field, None)
        hosts = 0
        for locality in cluster.get("load_assignment", {}).get("endpoints", []):
            for endpoint in locality.get("lb_endpoints", []):
                endpoint["endpoint"]["address"] = loopback(f"@{cluster['name']}.{hosts}@")
                endpoint["endpoint"].pop("health_check_config", None)
                hosts += 1
        upstreams[cluster["name"]] = {"hosts": hosts, **({"protocol": "h2"} if "http2_protocol_options" in str(cluster) else {})}
    return {**body, "config": config, "ports": [*ports, *body.get("ports", [])], "upstreams": merge(upstreams, body.get("upstreams", {}))}
