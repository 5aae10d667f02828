"""The coordinator's TLS: the operator checks a leaf before it hands its files over, the coordinator process uses it."""

import ssl
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: the leaf certificate (with its chain) and its key."""

    certificate: str
    key: str

    def context(self) -> ssl.SSLContext:
        """TLS 1.3 for a server. Raises OSError (`ssl.SSLError` is one) when the files cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0  # agents keep one connection for long: resumption would cost memory and save nothing
        context.load_cert_chain(self.certificate, self.key)
        return context
