"""The coordinator's identity: a CA of ten years in one Secret, filled once by the leader, and leaf certificates of a day signed by it.

Workers trust the Secret's bundle, which reaches them as a pod annotation. When a new CA is due, the bundle holds the new and the old one.
"""

import base64
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from lepton_operator.api import Api
from lepton_operator.substrate import Conflict

log = logging.getLogger(__name__)

CA_LIFE = timedelta(days=3650)
CA_RENEW = timedelta(days=365)
"""A CA with less time left than this is followed by a new one."""
LEAF_LIFE = timedelta(days=7)
LEAF_ROTATE_SECONDS = 86400.0
BACKDATE = timedelta(minutes=10)
"""For clocks that differ between nodes."""
CERTIFICATE, KEY = "ca.crt", "ca.key"


@dataclass(frozen=True, slots=True)
class Authority:
    """PEM texts. `bundle` is what workers trust: the CA's own certificate first, then the one before it, if any."""

    bundle: str
    key: str

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.bundle.encode())

    def due(self, now: datetime) -> bool:
        return self.certificate.not_valid_after_utc - now < CA_RENEW


def new_authority(now: datetime, before: Authority | None = None) -> Authority:
    """A new CA; the certificate of the one before stays trusted."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lepton coordinator CA")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    old = _pem(before.certificate) if before else ""
    return Authority(_pem(certificate) + old, _key_pem(key))


def new_leaf(authority: Authority, hosts: Sequence[str], now: datetime) -> tuple[str, str]:
    """(certificate, key) as PEM for DNS names and addresses."""
    ca = authority.certificate
    ca_key = serialization.load_pem_private_key(authority.key.encode(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lepton coordinator")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(min(now + LEAF_LIFE, ca.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return _pem(certificate), _key_pem(key)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


class AuthoritySecret:
    """The one Secret; needs `get` and `patch` on its name. Errors are `api`'s."""

    def __init__(self, api: Api, namespace: str, name: str) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/secrets/{name}"

    async def read(self) -> Authority | None:
        """What the Secret holds; None while it is empty. Raises `Gone` when the Secret itself is missing."""
        return _authority(await self._api.request("get", "secrets", self._path))

    async def fill(self, now: datetime) -> Authority:
        """For the leader: the Secret's CA, made now if there is none or it is due. Another's write between is kept."""
        while True:
            body = await self._api.request("get", "secrets", self._path)
            found = _authority(body)
            if found is not None and not found.due(now):
                return found
            made = new_authority(now, found)
            encoded = {CERTIFICATE: made.bundle, KEY: made.key}
            patch = {
                "metadata": {"resourceVersion": body["metadata"]["resourceVersion"]},
                "data": {name: base64.b64encode(text.encode()).decode() for name, text in encoded.items()},
            }
            try:
                await self._api.request("patch", "secrets", self._path, body=patch, content_type="application/merge-patch+json")
            except Conflict:
                continue
            log.info("made a %s CA for the coordinator", "new" if found else "first")
            return made


def _authority(body: dict[str, Any]) -> Authority | None:
    data = body.get("data") or {}
    if not data.get(CERTIFICATE) or not data.get(KEY):
        return None
    return Authority(base64.b64decode(data[CERTIFICATE]).decode(), base64.b64decode(data[KEY]).decode())


def write_leaf(folder: Path, authority: Authority, hosts: Sequence[str], number: int) -> tuple[str, str]:
    """Writes a fresh leaf, readable by us alone; the paths (certificate, key). They differ by `number`, so no reader ever sees half."""
    certificate, key = new_leaf(authority, hosts, datetime.now(UTC))
    paths = (folder / f"leaf-{number}.crt", folder / f"leaf-{number}.key")
    for path, text in zip(paths, (certificate, key), strict=True):
        path.touch(mode=0o600)
        path.write_text(text)
    for suffix in ("crt", "key"):
        (folder / f"leaf-{number - 2}.{suffix}").unlink(missing_ok=True)
    return os.fspath(paths[0]), os.fspath(paths[1])
