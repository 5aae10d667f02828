"""Authority and leaves, with made-up clocks; the handshake itself is in test_link_tls."""

from datetime import UTC, datetime, timedelta

from cryptography import x509

from lepton_operator.pods.certificates import new_authority, new_leaf

NOW = datetime(2026, 11, 25, tzinfo=UTC)
DAY = timedelta(days=1)
AUTHORITY = new_authority(NOW)


def load(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def test_an_authority_lives_ten_years_and_is_due_a_year_before_its_end() -> None:
    assert AUTHORITY.certificate.not_valid_after_utc == NOW + 3650 * DAY
    assert not AUTHORITY.due(NOW + 3280 * DAY)
    assert AUTHORITY.due(NOW + 3290 * DAY)


def test_a_new_authority_keeps_the_one_before_it_trusted_and_no_older_one() -> None:
    second = new_authority(NOW, AUTHORITY)
    third = new_authority(NOW, second)
    trusted = x509.load_pem_x509_certificates(third.bundle.encode())
    assert [c.public_key() for c in trusted] == [third.certificate.public_key(), second.certificate.public_key()]


def test_a_leaf_names_hosts_and_addresses_and_is_signed_by_its_authority() -> None:
    leaf = load(new_leaf(AUTHORITY, ["lepton.svc", "10.0.0.1"], NOW)[0])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["lepton.svc"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    leaf.verify_directly_issued_by(AUTHORITY.certificate)


def test_a_leaf_never_outlives_its_authority() -> None:
    leaf = load(new_leaf(AUTHORITY, ["a"], NOW + 3649 * DAY)[0])
    assert leaf.not_valid_after_utc == AUTHORITY.certificate.not_valid_after_utc
