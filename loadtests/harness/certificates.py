"""Throw-away certificates for cases and corpus files that need some, made with the openssl program."""

import json
import subprocess
import time

from . import environment


def authority(directory, names=("tls",), hosts="DNS:localhost,DNS:example.com,DNS:*.example.com,IP:127.0.0.1"):
    """`ca.crt`, `ca.key` and for each name `NAME.crt`, `NAME.key` signed by it."""
    openssl = environment.tool("openssl", "openssl")
    directory.mkdir(parents=True, exist_ok=True)

    def run(*arguments):
        subprocess.run([openssl, *map(str, arguments)], check=True, capture_output=True, cwd=directory)

    run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", 30, "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.crt")
    for name in names:
        run("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (directory / "extensions").write_text(f"subjectAltName={hosts}\nextendedKeyUsage=serverAuth,clientAuth\n")
        run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", 30, "-extfile", "extensions", "-out", f"{name}.crt")
    return directory


def standing():
    """The certificates that cases share, made once a fortnight: CA, server (`tls`), and two clients."""
    directory = environment.CACHE / "certs"
    if not (directory / "ca.crt").exists() or (directory / "ca.crt").stat().st_mtime < time.time() - 14 * 86400:
        authority(directory, ("tls", "client", "other"))
    return directory


def sds_files(directory, certificates):
    """The corpus's two SDS resources, as files that a `path_config_source` reads."""
    directory.mkdir(parents=True, exist_ok=True)
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

    def write(file, name, body):
        (directory / file).write_text(json.dumps({"resources": [{"@type": kind, "name": name, **body}]}))

    pair = {"certificate_chain": {"filename": str(certificates / "tls.crt")}, "private_key": {"filename": str(certificates / "tls.key")}}
    write("xds-certificate.json", "xds_certificate", {"tls_certificate": pair})
    write("xds-trusted-ca.json", "xds_trusted_ca", {"validation_context": {"trusted_ca": {"filename": str(certificates / "ca.crt")}}})
