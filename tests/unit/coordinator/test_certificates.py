"""Authority and leaves, with made-up clocks; the handshake itself is in test_link_tls."""

import ssl
from datetime import UTC, datetime

import pytest
from cryptography import x509

from lepton_operator.coordinator.certificates import CertificateError, Pair, bundle, check_authority, due, issue, new_authority

NOW = datetime(2026, 11, 25, tzinfo=UTC).timestamp()
DAY = 86400.0
AUTHORITY = new_authority(NOW)


def load(pair: Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate.encode())


def test_an_authority_lives_ten_years() -> None:
    lifetime = load(AUTHORITY).not_valid_after_utc.timestamp() - NOW
    assert lifetime == 3650 * DAY
    check_authority(AUTHORITY, NOW + 3649 * DAY)
    with pytest.raises(CertificateError, match="valid from"):
        check_authority(AUTHORITY, NOW + 3651 * DAY)


def test_a_leaf_names_hosts_and_addresses_and_is_signed_by_its_authority() -> None:
    leaf = load(issue(AUTHORITY, ["lepton.svc", "10.0.0.1"], NOW))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["lepton.svc"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    leaf.verify_directly_issued_by(load(AUTHORITY))


def test_a_leaf_is_due_at_half_its_life_or_under_another_authority() -> None:
    leaf = issue(AUTHORITY, ["a"], NOW, days=2)
    assert not due(leaf, AUTHORITY, NOW + 0.9 * DAY)
    assert due(leaf, AUTHORITY, NOW + 1.1 * DAY)
    assert due(leaf, new_authority(NOW), NOW)


def test_a_leaf_never_outlives_its_authority() -> None:
    late = NOW + 3649.5 * DAY
    assert load(issue(AUTHORITY, ["a"], late, days=30)).not_valid_after_utc == load(AUTHORITY).not_valid_after_utc
    with pytest.raises(CertificateError, match="expired"):
        issue(AUTHORITY, ["a"], NOW + 3651 * DAY)


@pytest.mark.parametrize(
    "pair",
    [
        Pair("", ""),
        Pair("garbage", AUTHORITY.key),
        Pair(AUTHORITY.certificate, "garbage"),
        Pair(AUTHORITY.certificate, new_authority(NOW).key),
        issue(AUTHORITY, ["a"], NOW),
    ],
)
def test_what_is_no_authority_is_said_to_be_none(pair: Pair) -> None:
    with pytest.raises(CertificateError):
        check_authority(pair, NOW)


def test_a_bundle_holds_the_authority_and_the_one_before_it() -> None:
    older, oldest = new_authority(NOW).certificate, new_authority(NOW).certificate
    both = bundle(AUTHORITY.certificate, bundle(older, oldest, NOW), NOW)
    assert len(x509.load_pem_x509_certificates(both.encode())) == 2
    assert both.startswith(AUTHORITY.certificate.strip()) and older.strip() in both
    assert bundle(AUTHORITY.certificate, both, NOW) == bundle(AUTHORITY.certificate, older, NOW)
    assert bundle(AUTHORITY.certificate, "", NOW) == AUTHORITY.certificate
    assert bundle(AUTHORITY.certificate, older, NOW + 4000 * DAY) == AUTHORITY.certificate


def test_pythons_strictest_verification_accepts_the_chain() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=AUTHORITY.certificate)
    assert context.cert_store_stats()["x509_ca"] == 1
