"""The agent's side of TLS: the host is verified, the CA and the token are read anew at each connect, an address may be in a file."""

import asyncio
import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from local.agent.coordinator_double import Coordinator, start_agent, wait_for


class Authority:
    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._build(self._name, self._key.public_key()).add_extension(x509.BasicConstraints(True, None), True)
        self.pem = self.certificate.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _build(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key).serial_number(1)
        return builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=1))

    def context(self, folder: Path, host: str) -> ssl.SSLContext:
        """A server's context with a leaf for `host`."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        leaf = self._build(x509.Name([]), key.public_key()).add_extension(names, True).sign(self._key, hashes.SHA256())
        path = folder / "leaf.pem"
        encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        path.write_bytes(leaf.public_bytes(encoding) + key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


@pytest.mark.parametrize("wrong", ["authority", "host"])
async def test_a_coordinator_that_cannot_prove_itself_gets_nothing_until_it_can(tmp_path: Path, wrong: str) -> None:
    good, other = Authority("good"), Authority("other")
    it = Coordinator()
    host = "elsewhere" if wrong == "host" else "localhost"
    it.tls = (other if wrong == "authority" else good).context(tmp_path, host)
    await it.start()
    (tmp_path / "ca").write_bytes(good.pem)
    (tmp_path / "token").write_text("one\n")
    (tmp_path / "address").write_text(f"tls://localhost:{it.port}")
    files = {name: str(tmp_path / path) for name, path in (("LEPTON_CA_FILE", "ca"), ("LEPTON_TOKEN_FILE", "token"))}
    agent = await start_agent(tmp_path, it, ["true"], LEPTON_COORDINATOR=f"file:{tmp_path / 'address'}", **files)
    try:
        await wait_for(lambda: "training goes on, trying again" in agent.output())
        assert "certificate verify failed" in agent.output() and not it.joins
        (tmp_path / "token").write_text("two\n")
        if wrong == "authority":
            (tmp_path / "ca").write_bytes(good.pem + other.pem)
        else:
            await it.stop()
            it.tls = good.context(tmp_path, "localhost")
            await it.start()
            (tmp_path / "address").write_text(f"tls://localhost:{it.port}")
        await it.until(lambda: it.joins)
        assert it.joins[0].token == "two"
        assert it.peers[0].writer.get_extra_info("ssl_object").version() == "TLSv1.3"
    finally:
        agent.kill()
        await agent.ended()
        await it.stop()


async def test_without_tls_only_loopback_is_spoken_to(tmp_path: Path) -> None:
    agent = await start_agent(tmp_path, Coordinator(), ["true"], LEPTON_COORDINATOR="tcp://10.0.0.1:7443")
    try:
        await wait_for(lambda: "without TLS only loopback is allowed" in agent.output())
    finally:
        agent.kill()
        await asyncio.wait_for(agent.process.wait(), 5)
