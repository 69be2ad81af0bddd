"""Throw-away certificates for cases and corpus files that need some, made with the openssl program."""

import fcntl
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


def own_signed(directory):
    """(chain, key): files of an ECDSA certificate that nobody vouches for."""
    chain, key = directory / "own.crt", directory / "own.key"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command = [environment.tool("openssl", "openssl"), "req", "-x509", *curve, "-nodes", "-days", "30", "-subj", "/CN=localhost", "-keyout", key, "-out", chain]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return chain, key


# Of what cases ask about a certificate, one each: its names, and what else is said of it.
DOUBTFUL = {
    "good": ("DNS:example.com,URI:spiffe://td/client", "keyUsage=digitalSignature\n"),
    # No SPIFFE identity: nothing is said of what its key is for.
    "unused": ("DNS:example.com,URI:spiffe://td/client", ""),
    "named": ("DNS:elsewhere.org", ""),
    "expired": ("DNS:example.com", ""),
    "revoked": ("DNS:example.com", ""),
    # Whoever reads a name to its first NUL takes it for another.
    "nul": ("DER:30:17:82:15:" + ":".join(f"{byte:02x}" for byte in b"example.com\0.evil.org"), ""),
    "authority": ("DNS:example.com", "basicConstraints=critical,CA:TRUE\n"),
    "hosts_only": ("DNS:example.com", "extendedKeyUsage=serverAuth\n"),
}

CA_CONFIGURATION = """[ca]
default_ca = this
[this]
database = index.txt
serial = serial
new_certs_dir = .
default_md = sha256
default_crl_days = 30
crlnumber = crlnumber
crl_extensions = list
unique_subject = no
policy = any
[any]
commonName = supplied
[list]
authorityKeyIdentifier = keyid:always
"""


def doubtful(directory):
    """Certificates of the authority at `directory` that a peer may turn away, and its revocation list `ca.crl`."""
    openssl = environment.tool("openssl", "openssl")

    def run(*arguments):
        subprocess.run([openssl, *map(str, arguments)], check=True, capture_output=True, cwd=directory)

    signing = ("ca", "-batch", "-config", "ca.cnf", "-cert", "ca.crt", "-keyfile", "ca.key")
    (directory / "ca.cnf").write_text(CA_CONFIGURATION)
    (directory / "index.txt").write_text("")
    (directory / "serial").write_text("1000\n")
    (directory / "crlnumber").write_text("01\n")
    for name, (names, more) in DOUBTFUL.items():
        run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (directory / "extensions").write_text(f"subjectAltName={names}\n{more}")
        times = ("-startdate", "20200101000000Z", "-enddate", "20210101000000Z") if name == "expired" else ("-days", 30)
        run(*signing, "-in", f"{name}.csr", "-extfile", "extensions", *times, "-notext", "-out", f"{name}.crt")
    run(*signing, "-revoke", "revoked.crt")
    run(*signing, "-gencrl", "-out", "ca.crl")


def standing():
    """The certificates that cases share, made once a fortnight: CA, server (`tls`), two clients, what is doubtful, and in `elsewhere` another
    CA's."""
    directory = environment.CACHE / "certs"
    environment.CACHE.mkdir(parents=True, exist_ok=True)
    with open(environment.CACHE / "certs.lock", "w") as alone:  # whoever plays both sides at once asks twice at once
        fcntl.flock(alone, fcntl.LOCK_EX)
        _make_standing(directory)
    return directory


def _make_standing(directory):
    if not (directory / "ca.crt").exists() or (directory / "ca.crt").stat().st_mtime < time.time() - 14 * 86400:
        shutil.rmtree(directory, ignore_errors=True)
        authority(directory, ("tls", "client", "other"))
    if not (directory / "elsewhere").exists():
        with tempfile.TemporaryDirectory(dir=environment.CACHE) as folder:
            made = authority(Path(folder) / "elsewhere", ("tls", "client"))
            made.rename(directory / "elsewhere")
    if not (directory / "ca.crl").exists():
        doubtful(directory)


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
