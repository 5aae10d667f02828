"""The coordinator's certificates: an authority that lives ten years and leaves that live a day. P-256, PEM; the time is passed in.

The authority is what pods trust, so it changes as rarely as possible; a leaf is made anew by each operator process and again at half its
life, and its key never leaves that process's private folder.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ssl import PROTOCOL_TLS_SERVER, SSLContext, TLSVersion

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_DAYS = 3650
LEAF_DAYS = 1
BACKDATED = timedelta(hours=1)
"""For pods whose clocks are behind."""


class CertificateError(ValueError):
    """What should be an authority or a leaf is none; `args[0]` says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: str
    key: str


def new_authority(now: float, name: str = "lepton-coordinator-ca") -> Pair:
    """A self-signed authority, from `now` (unix seconds) for ten years."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = _builder(subject, subject, key.public_key(), now, timedelta(days=AUTHORITY_DAYS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).add_extension(usage, critical=True)
    return _pair(builder.sign(key, hashes.SHA256()), key)


def issue(authority: Pair, names: Iterable[str], now: float, days: float = LEAF_DAYS) -> Pair:
    """A server's leaf for DNS names and IP addresses, never outliving its authority. Raises `CertificateError` for a bad authority."""
    issuer, issuer_key = _load(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = [_alternative(name) for name in names]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lepton-coordinator")])
    until = min(timedelta(days=days), issuer.not_valid_after_utc - _moment(now))
    if until <= timedelta(0):
        raise CertificateError(f"the authority expired on {issuer.not_valid_after_utc:%Y-%m-%d}: make a new one")
    issuer_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    leaf = (
        _builder(subject, issuer.subject, key.public_key(), now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return _pair(leaf, key)


def check_authority(authority: Pair, now: float) -> None:
    """Raises `CertificateError` unless this is an authority of which we hold the key, valid at `now`."""
    certificate, _ = _load(authority)
    if not certificate.not_valid_before_utc <= _moment(now) < certificate.not_valid_after_utc:
        raise CertificateError(f"the authority is valid from {certificate.not_valid_before_utc} to {certificate.not_valid_after_utc}")


def due(leaf: Pair, authority: Pair, now: float) -> bool:
    """Whether a leaf is to be replaced: half its life is over, or another authority is to sign it."""
    certificate = x509.load_pem_x509_certificate(leaf.certificate.encode())
    begins, ends = certificate.not_valid_before_utc + BACKDATED, certificate.not_valid_after_utc
    if _moment(now) >= begins + (ends - begins) / 2:
        return True
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate.encode()))
    except (InvalidSignature, ValueError):
        return True
    return False


def bundle(current: str, previous: str, now: float) -> str:
    """What pods should trust: the authority, and the one before it (PEM of either; empty: none) while it is valid.

    `previous` may itself be a bundle; its first certificate counts that is not the current one."""
    kept = [current.strip()]
    for certificate in x509.load_pem_x509_certificates(previous.encode()) if previous.strip() else []:
        pem = certificate.public_bytes(serialization.Encoding.PEM).decode().strip()
        if pem not in kept and _moment(now) < certificate.not_valid_after_utc and len(kept) < 2:
            kept.append(pem)
    return "\n".join(kept) + "\n"


def server_context(certificate: str, key: str) -> SSLContext:
    """TLS 1.3 from the files of a leaf and its key. Raises OSError (ssl.SSLError among them) when they cannot be used."""
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.minimum_version = TLSVersion.TLSv1_3
    context.num_tickets = 0  # agents keep one connection for long: resumption would cost memory and save nothing
    context.load_cert_chain(certificate, key)
    return context


def _load(authority: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate(authority.certificate.encode())
        key = serialization.load_pem_private_key(authority.key.encode(), password=None)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise CertificateError(f"not a certificate authority: {error}") from None
    if not constraints.ca or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError("the certificate is not an authority with a P-256 key")
    if key.public_key() != certificate.public_key():
        raise CertificateError("the key is not that of the certificate")
    return certificate, key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(now) - BACKDATED)
        .not_valid_after(_moment(now) + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Pair(certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode())
