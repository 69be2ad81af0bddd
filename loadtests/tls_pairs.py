"""Two proxies in a row, tidegate and Envoy either way round: the first ends its client's TLS and speaks TLS with the second, or hands the
client's on as it is; the second asks for SPIFFE identities and tells whom it sees. Whoever is not who he must be gets nothing.
It ends with 0 when every pair does the same.

    python3 loadtests/tls_pairs.py                 # the newest tidegate in target/
"""

import argparse
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import certificates, environment, process

API = "type.googleapis.com/envoy.extensions."
PATIENCE = 20


def file(name):
    return {"filename": str(certificates.standing() / name)}


def pair(name):
    return {"certificate_chain": file(f"{name}.crt"), "private_key": file(f"{name}.key")}


def address(port):
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def typed(kind, **body):
    return {"name": kind.rsplit(".", 1)[1], "typed_config": {"@type": API + kind, **body}}


def downstream(common, **more):
    return typed("transport_sockets.tls.v3.DownstreamTlsContext", common_tls_context=common, **more)


def http(routes):
    router = typed("filters.http.router.v3.Router")
    hosts = [{"name": "all", "domains": ["*"], "routes": routes}]
    return typed("filters.network.http_connection_manager.v3.HttpConnectionManager", stat_prefix="s", http_filters=[router], route_config={"virtual_hosts": hosts})


def bootstrap(listeners, clusters=()):
    return {"admin": {"address": address(process.free_port())}, "static_resources": {"listeners": listeners, "clusters": list(clusters)}}


def back(port):
    """Asks for an identity of the trust domain `td`, and tells which it was."""
    told = {"header": {"key": "x-peer", "value": "%DOWNSTREAM_PEER_URI_SAN%"}}
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200}, "response_headers_to_add": [told]}
    domains = [{"name": "td", "trust_bundle": file("ca.crt")}]
    validation = {"custom_validator_config": typed("transport_sockets.tls.v3.SPIFFECertValidatorConfig", trust_domains=domains)}
    validation["custom_validator_config"]["name"] = "envoy.tls.cert_validator.spiffe"
    context = downstream({"tls_certificates": [pair("good")], "validation_context": validation}, require_client_certificate=True)
    return bootstrap([{"name": "back", "address": address(port), "filter_chains": [{"filters": [http([route])], "transport_socket": context}]}])


def cluster(name, port, certificate=None, identity="spiffe://td/client"):
    described = {"name": name, "connect_timeout": "1s", "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]}}
    if certificate:
        validation = {"trusted_ca": file("ca.crt"), "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": identity}}]}
        common = {"tls_certificates": [pair(certificate)], "validation_context": validation}
        described["transport_socket"] = typed("transport_sockets.tls.v3.UpstreamTlsContext", sni="example.com", common_tls_context=common)
    return described


def front(plain, secured, passing, port):
    """Without and with TLS of its own before that to the second; and by SNI without a look inside."""
    names = ("good", "unused", "foreign", "misled")
    routes = [{"match": {"prefix": f"/{name}"}, "route": {"cluster": name}} for name in names]
    ended = downstream({"tls_certificates": [pair("tls")]})
    proxy = typed("filters.network.tcp_proxy.v3.TcpProxy", stat_prefix="t", cluster="raw")
    inspector = typed("filters.listener.tls_inspector.v3.TlsInspector")
    return bootstrap(
        [
            {"name": "plain", "address": address(plain), "filter_chains": [{"filters": [http(routes)]}]},
            {"name": "secured", "address": address(secured), "filter_chains": [{"filters": [http(routes)], "transport_socket": ended}]},
            {
                "name": "passing", "address": address(passing), "listener_filters": [inspector],
                "filter_chains": [{"filter_chain_match": {"server_names": ["example.com"]}, "filters": [proxy]}],
            },
        ],
        [
            cluster("good", port, "good"), cluster("unused", port, "unused"), cluster("foreign", port, "elsewhere/client"),
            cluster("misled", port, "good", "spiffe://td/other"), cluster("raw", port),
        ],
    )


def ask(port, path, tls=None, certificate=None):
    """The status and whom the second saw; `closed` where nothing came."""
    try:
        stream = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        if tls:
            context = ssl.create_default_context(cafile=certificates.standing() / "ca.crt")
            if certificate:
                context.load_cert_chain(certificates.standing() / f"{certificate}.crt", certificates.standing() / f"{certificate}.key")
            stream = context.wrap_socket(stream, server_hostname=tls)
        stream.sendall(f"GET {path} HTTP/1.1\r\nhost: example.com\r\nconnection: close\r\n\r\n".encode())
        answer = b""
        while piece := stream.recv(65536):
            answer += piece
    except OSError:
        return "closed"
    if not answer:
        return "closed"
    lines = answer.decode().split("\r\n")
    peer = [line.partition(": ")[2] for line in lines if line.startswith("x-peer:")]
    return " ".join([lines[0].split(" ")[1], *peer])


EXPECTED = {
    "re-encrypt": "200 spiffe://td/client", "terminate, re-encrypt": "200 spiffe://td/client", "pass through": "200 spiffe://td/client",
    "no identity": "503", "another authority": "503", "another host than wanted": "503",
    "pass through, no certificate": "closed", "pass through, another authority": "closed", "pass through, another name": "closed",
}


def observe(plain, secured, passing):
    return {
        "re-encrypt": ask(plain, "/good"), "terminate, re-encrypt": ask(secured, "/good", "example.com"),
        "pass through": ask(passing, "/", "example.com", "good"),
        "no identity": ask(plain, "/unused"), "another authority": ask(plain, "/foreign"), "another host than wanted": ask(plain, "/misled"),
        "pass through, no certificate": ask(passing, "/", "example.com"),
        "pass through, another authority": ask(passing, "/", "example.com", "elsewhere/client"),
        "pass through, another name": ask(passing, "/", "localhost", "good"),
    }


def start(binary, config, directory, number):
    path = directory / f"{number}.json"
    path.write_text(json.dumps(config))
    with open(directory / f"{number}.txt", "wb") as output:
        started = subprocess.Popen([str(binary), "-c", path, "--concurrency", "1", "--disable-hot-restart"], stdout=output, stderr=output)
    admin = config["admin"]["address"]["socket_address"]["port_value"]
    end = time.monotonic() + PATIENCE
    while not ask(admin, "/ready").startswith("200"):
        if started.poll() is not None or time.monotonic() > end:
            started.kill()
            sys.exit(f"{binary} does not start: {(directory / f'{number}.txt').read_text()[-2000:]}")
        time.sleep(0.05)
    return started


def run(first, second):
    ports = [process.free_port() for _ in range(4)]
    with tempfile.TemporaryDirectory() as directory:
        running = []
        try:
            running.append(start(second, back(ports[3]), Path(directory), "back"))
            running.append(start(first, front(*ports), Path(directory), "front"))
            return observe(*ports[:3])
        finally:
            for one in running:
                one.kill()
                one.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", help="the tidegate binary (default: the newest in target/)")
    options = parser.parse_args()
    environment.enter()
    kinds = {"tidegate": environment.subject(options.subject), "envoy": environment.oracle()}
    wrong = 0
    for first in kinds:
        for second in kinds:
            for what, seen in run(kinds[first], kinds[second]).items():
                if seen != EXPECTED[what]:
                    wrong += 1
                    print(f"{first} before {second}: {what}: {seen}, not {EXPECTED[what]}")
            print(f"{first} before {second}: {len(EXPECTED)} looked at")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
