"""A real coordinator process with TLS and projected tokens."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lepton_operator import clock
from lepton_operator.coordinator.identity import Claims, Unidentified
from lepton_operator.coordinator.link import CoordinatorLink
from lepton_operator.coordinator.tls import TlsFiles
from lepton_operator.pods.certificates import Authority, new_authority, new_leaf
from lepton_trainer.protocol import messages as m
from simulated_agent import SimulatedAgent
from unit.coordinator.cluster_tokens import ISSUER, Cluster
from unit.coordinator.orders import group

CLUSTER = Cluster("ES256")
AUTHORITY = new_authority(datetime.now(UTC))


def leaf(folder: Path, authority: Authority = AUTHORITY, number: int = 1) -> TlsFiles:
    paths = folder / f"leaf-{number}.crt", folder / f"leaf-{number}.key"
    for path, text in zip(paths, new_leaf(authority, ["coordinator"], datetime.now(UTC)), strict=True):
        path.write_text(text)
    return TlsFiles(*map(str, paths))


def trusting(*authorities: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata="".join(authority.bundle for authority in authorities))
    return context


Start = Callable[..., Awaitable[CoordinatorLink]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    links: list[CoordinatorLink] = []

    async def begin(**changes: object) -> CoordinatorLink:
        link = CoordinatorLink(listen=("127.0.0.1", 0), tls=leaf(tmp_path), on_change=lambda job: None, **changes)  # type: ignore[arg-type]
        links.append(link)
        await link.start()
        link.lead(clock.mono() + 3600)
        link.set_group(group(2, token=""))
        return link

    yield begin
    for link in links:
        await link.stop()


async def joined(link: CoordinatorLink, token: str, tls: ssl.SSLContext) -> SimulatedAgent:
    agent = await SimulatedAgent(token=token).connect(link.port, tls)
    return await agent.until(lambda a: a.order or a.refusal)


async def test_a_pods_own_token_lets_it_in_and_anothers_does_not(start: Start) -> None:
    link = await start()
    link.set_keys(CLUSTER.jwks(), ISSUER)
    tls = trusting(AUTHORITY)
    assert (await joined(link, CLUSTER.token("pod-0"), tls)).order is not None
    for token in (CLUSTER.token("pod-1"), CLUSTER.token("pod-0", exp=int(time.time()) - 3600), "junk"):
        agent = await joined(link, token, tls)
        assert agent.refusal is not None and agent.refusal.code == m.BAD_TOKEN
        assert token not in agent.refusal.message


async def test_an_unknown_key_is_asked_for_once_and_then_accepted(start: Start) -> None:
    wanted: asyncio.Queue[str] = asyncio.Queue()
    link = await start(on_keys_wanted=wanted.put_nowait)
    link.set_keys(Cluster("ES256", kid="older").jwks(), ISSUER)
    tls = trusting(AUTHORITY)
    for _ in range(3):
        refused = await joined(link, CLUSTER.token("pod-0"), tls)
        assert refused.refusal is not None and 0 < refused.refusal.retry_seconds < 1
    assert await asyncio.wait_for(wanted.get(), 5) == CLUSTER.kid
    link.set_keys(CLUSTER.jwks(), ISSUER)
    assert (await joined(link, CLUSTER.token("pod-0"), tls)).order is not None
    assert wanted.empty()


async def test_where_the_keys_are_hidden_the_api_server_is_asked(start: Start) -> None:
    async def review(token: str) -> Claims:
        if token == "good":
            return Claims("default", "pod-0")
        if token == "bad":
            raise Unidentified("it is expired")
        raise OSError("nobody answers")

    link = await start(review=review)
    tls = trusting(AUTHORITY)
    assert (await joined(link, "good", tls)).order is not None
    for token, words in (("bad", "it is expired"), ("else", "could not be asked")):
        agent = await joined(link, token, tls)
        assert agent.refusal is not None and words in agent.refusal.message


async def test_a_rotated_leaf_serves_new_connections_and_leaves_the_others(start: Start, tmp_path: Path) -> None:
    link = await start()
    link.set_keys(CLUSTER.jwks(), ISSUER)
    older = await joined(link, CLUSTER.token("pod-0"), trusting(AUTHORITY))
    other = new_authority(datetime.now(UTC))
    link.rotate_tls(leaf(tmp_path, other, number=2))
    link.probe("default/digits")
    await older.until(lambda a: any(isinstance(message, m.Ping) for message in a.heard))
    with pytest.raises(ssl.SSLCertVerificationError):
        await SimulatedAgent(worker=1).connect(link.port, trusting(AUTHORITY))
    newer = SimulatedAgent(worker=1, token=CLUSTER.token("pod-1"))
    await newer.connect(link.port, trusting(AUTHORITY, other))
    await newer.until(lambda a: a.order)
    assert not older.closed


async def test_a_leaf_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    files = leaf(tmp_path)
    Path(files.key).write_text(AUTHORITY.key)
    with pytest.raises(OSError, match="KEY_VALUES_MISMATCH"):
        CoordinatorLink(listen=("127.0.0.1", 0), tls=files, on_change=lambda job: None)


async def test_a_plain_peer_on_the_tls_port_disturbs_nobody(start: Start) -> None:
    link = await start()
    link.set_keys(CLUSTER.jwks(), ISSUER)
    agent = await joined(link, CLUSTER.token("pod-0"), trusting(AUTHORITY))
    _, writer = await asyncio.open_connection("127.0.0.1", link.port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    another = await joined(link, CLUSTER.token("pod-0"), trusting(AUTHORITY))
    assert another.order is not None
    await agent.until(lambda a: a.closed)  # superseded by the second join, not by the noise
    assert agent.refusal is not None and agent.refusal.code == m.SUPERSEDED
    writer.close()
