"""Makes what the TLS of a corpus configuration names: authorities, certificates, SDS files, and servers that its contexts accept.

The harness's own CA takes the place of whatever a file trusts, its client certificate that of whatever a file presents. Files stand
under the run's directory, at the path that the configuration gives. What a context says of names, versions and protocols stays.
"""

import json
import re

from . import certificates

PLACE = "files"  # below the run's directory
SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


def fill(config):
    """Changes `config` (in snake_case) in place; gives the files to be made and the secrets that control planes are asked for."""
    files, secrets = {}, {}
    _fill(config, files, secrets)
    return files, secrets


def _fill(value, files, secrets):
    if isinstance(value, list):
        for one in value:
            _fill(one, files, secrets)
    if not isinstance(value, dict):
        return
    certs = certificates.standing()
    for key, file in (("trusted_ca", "ca.crt"), ("certificate_chain", "client.crt"), ("private_key", "client.key")):
        if isinstance(value.get(key), dict):
            value[key] = _source(value[key], (certs / file).read_text(), files)
    if isinstance(value.get("validation_context_sds_secret_config"), dict):
        _secret(value["validation_context_sds_secret_config"], {"ca": True}, files, secrets)
    for one in value.get("tls_certificate_sds_secret_configs") or []:
        _secret(one, {"cert": "client"}, files, secrets)
    for one in value.values():
        _fill(one, files, secrets)


def _source(source, text, files):
    """A data source of the same kind as `source`: a file that is made, or the text itself."""
    if "filename" not in source:
        return {"inline_string": text}
    name = PLACE + "/" + source["filename"].lstrip("/")
    files[name] = text
    return {"filename": f"@dir@/{name}"}


def _secret(config, described, files, secrets):
    """What `sds_config` names: a file of one resource, a control plane's secret, or a static one, which is filled in where it stands."""
    source = config.get("sds_config") or {}
    if "path_config_source" in source:
        name = PLACE + "/" + source["path_config_source"]["path"].lstrip("/")
        files[name] = json.dumps({"resources": [{"@type": SECRET, "name": config["name"], **_resource(described)}]})
        source["path_config_source"]["path"] = f"@dir@/{name}"
    elif source:
        secrets[config["name"]] = described


def _resource(described):
    if "ca" in described:
        return {"validation_context": {"trusted_ca": {"filename": "@certs@/ca.crt"}}}
    name = f"@certs@/{described['cert']}"
    return {"tls_certificate": {"certificate_chain": {"filename": f"{name}.crt"}, "private_key": {"filename": f"{name}.key"}}}


def control_planes(value):
    """Names of the clusters that xDS comes from."""
    if isinstance(value, list):
        return {name for one in value for name in control_planes(one)}
    if not isinstance(value, dict):
        return set()
    found = {name for one in value.values() for name in control_planes(one)}
    for key in ("api_config_source", "ads_config"):
        services = (value.get(key) or {}).get("grpc_services", [])
        for service in services if isinstance(services, list) else [services]:
            found.add((service.get("envoy_grpc") or {}).get("cluster_name"))
    return found - {None}


def server(cluster, endpoint, hosts, h2):
    """(TLS of the scripted host or None, whether a PROXY header comes first) for one endpoint; requests are for `hosts`."""
    socket, proxied = _socket(cluster, endpoint), False
    config = (socket or {}).get("typed_config", {})
    if "ProxyProtocolUpstreamTransport" in str(config.get("@type")):
        proxied, config = True, config["transport_socket"].get("typed_config", {})
    if not str(config.get("@type")).endswith("UpstreamTlsContext"):
        return None, proxied
    names = [*(f"DNS:{host}" for host in hosts), *_named(config), f"DNS:{config['sni']}" if config.get("sni") else ""]
    name = endpoint["endpoint"].get("hostname")
    if config.get("auto_host_sni") and name:
        names.append(f"DNS:{name}")
    shown = {"sans": ",".join(dict.fromkeys(filter(None, names))), "alpn": ["h2"] if h2 else ["http/1.1"]}
    common = config.get("common_tls_context") or {}
    if common.get("tls_certificates") or common.get("tls_certificate_sds_secret_configs"):
        shown["verify"] = True
    return shown, proxied


def _socket(cluster, endpoint):
    """As Envoy chooses it: the first match that the endpoint's metadata fulfils, else the cluster's own."""
    own = ((endpoint.get("metadata") or {}).get("filter_metadata") or {}).get("envoy.transport_socket_match", {})
    for one in cluster.get("transport_socket_matches") or []:
        if all(own.get(key) == value for key, value in (one.get("match") or {}).items()):
            return one["transport_socket"]
    return cluster.get("transport_socket")


def _named(context):
    """The exact names that a context asks for, as openssl writes them."""
    if isinstance(context, list):
        return [name for one in context for name in _named(one)]
    if not isinstance(context, dict):
        return []
    found = [name for one in context.values() for name in _named(one)]
    for one in context.get("match_typed_subject_alt_names") or []:
        kind = {"DNS": "DNS", "URI": "URI", "EMAIL": "email", "IP_ADDRESS": "IP"}[one["san_type"]]
        if "exact" in one["matcher"]:
            found.append(f"{kind}:{one['matcher']['exact']}")
    return found


def has_context(message):
    """Whether there is a TLS context in it."""
    return re.search(r"(Upstream|Downstream)TlsContext", str(message)) is not None
