"""TLS of the client: what a step's `tls` says, and sessions that are kept under a name to come back with."""

import ssl


class Context(ssl.SSLContext):
    """One whose connections offer `session`; sessions are good only for the context that made them, so a name has one of its own."""

    session = None

    def wrap_bio(self, *arguments, **more):
        return super().wrap_bio(*arguments, session=self.session, **more)

    def keep(self, writer):
        """After a response: what came back of sessions, for the next connection; whether this one was resumed."""
        connection = writer.get_extra_info("ssl_object")
        self.session = connection.session
        return {"resumed": connection.session_reused, "version": connection.version()}


def context(tls):
    """`{alpn, cert, key, max, version, ciphers}`; who the server is, is not looked at."""
    made = Context(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    if tls.get("alpn"):
        made.set_alpn_protocols(tls["alpn"])
    if tls.get("cert"):
        made.load_cert_chain(tls["cert"], tls["key"])
    if tls.get("max"):
        made.maximum_version = ssl.TLSVersion[tls["max"]]
    if tls.get("version"):
        made.minimum_version = made.maximum_version = ssl.TLSVersion[tls["version"]]
    if tls.get("ciphers"):
        made.set_ciphers(tls["ciphers"])
    return made
