"""Throw-away certificates for cases and corpus files that need some, made with the openssl program."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

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
    """The certificates that cases share, made once a fortnight: CA, server (`tls`), two clients, and in `elsewhere` another CA's."""
    directory = environment.CACHE / "certs"
    if not (directory / "ca.crt").exists() or (directory / "ca.crt").stat().st_mtime < time.time() - 14 * 86400:
        shutil.rmtree(directory, ignore_errors=True)
        authority(directory, ("tls", "client", "other"))
    if not (directory / "elsewhere").exists():
        with tempfile.TemporaryDirectory(dir=environment.CACHE) as folder:
            made = authority(Path(folder) / "elsewhere", ("tls", "client"))
            made.rename(directory / "elsewhere")
    return directory


def leaf(sans):
    """(certificate, key) of a server with just these names (`DNS:a,URI:spiffe://b`), signed by the standing CA and kept beside it."""
    directory = standing()
    name = "leaf-" + hashlib.sha256(sans.encode()).hexdigest()[:16]
    if not (directory / f"{name}.crt").exists():
        sign(directory, name, sans)
    return directory / f"{name}.crt", directory / f"{name}.key"


def sign(directory, name, sans, subject="/CN=leaf", key=("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")):
    """`NAME.crt` and `NAME.key`, signed by the CA in `directory`; moved into place, since others may read there."""
    openssl = environment.tool("openssl", "openssl")
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        work = Path(folder)

        def run(*arguments):
            subprocess.run([openssl, *map(str, arguments)], check=True, capture_output=True, cwd=work)

        run("req", *key, "-nodes", "-subj", subject, "-keyout", "key", "-out", "request")
        (work / "extensions").write_text(f"subjectAltName={sans}\nextendedKeyUsage=serverAuth,clientAuth\n")
        serial = int.from_bytes(os.urandom(8), "big") | 1 << 62
        signing = ("-CA", directory / "ca.crt", "-CAkey", directory / "ca.key", "-set_serial", serial)
        run("x509", "-req", "-in", "request", *signing, "-days", 30, "-extfile", "extensions", "-out", "crt")
        (work / "key").rename(directory / f"{name}.key")
        (work / "crt").rename(directory / f"{name}.crt")


def sds_files(directory, certificates):
    """The corpus's two SDS resources, as files that a `path_config_source` reads."""
    directory.mkdir(parents=True, exist_ok=True)
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

    def write(file, name, body):
        (directory / file).write_text(json.dumps({"resources": [{"@type": kind, "name": name, **body}]}))

    pair = {"certificate_chain": {"filename": str(certificates / "tls.crt")}, "private_key": {"filename": str(certificates / "tls.key")}}
    write("xds-certificate.json", "xds_certificate", {"tls_certificate": pair})
    write("xds-trusted-ca.json", "xds_trusted_ca", {"validation_context": {"trusted_ca": {"filename": str(certificates / "ca.crt")}}})
