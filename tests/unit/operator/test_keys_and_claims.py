"""Signing keys are fetched seldom, a cluster that hides them is asked token by token, and a claim outlives a claimant only for a while."""

import asyncio
import contextlib
import time

import pytest

from builders.fake_api import status
from lepton_operator.coordinator.identity import Unidentified
from lepton_operator.job import format_micro_time
from lepton_operator.pods import claims, keys
from lepton_operator.pods.claims import Claimants
from lepton_operator.pods.keys import SigningKeys
from lepton_trainer.protocol.names import TOKEN_AUDIENCE


@contextlib.asynccontextmanager
async def running(work):
    task = asyncio.create_task(work)
    try:
        async with asyncio.timeout(5):
            yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition):
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def test_keys_and_issuer_are_handed_on(fake, api):
    fake.routes = {"openid-configuration": (200, {"issuer": "https://cluster"}), "jwks": (200, {"keys": [{"kid": "a"}]})}
    told = []
    assert await SigningKeys(api, lambda *given: told.append(given)).fetch()
    assert told == [({"keys": [{"kid": "a"}]}, "https://cluster")]


async def test_any_number_of_unknown_keys_costs_one_fetch(fake, api, monkeypatch):
    monkeypatch.setattr(keys, "FEWEST_SECONDS", 0.2)
    fake.routes = {"openid-configuration": (200, {"issuer": "i"}), "jwks": (200, {"keys": []})}
    told = []
    signing = SigningKeys(api, lambda *given: told.append(given))
    async with running(signing.run()):
        await until(lambda: len(told) == 1)
        for number in range(1000):
            signing.wanted(f"forged-{number}")
        await asyncio.sleep(0.05)
        assert len(told) == 1
        await until(lambda: len(told) == 2)


async def test_keys_that_are_hidden_are_no_error(fake, api, caplog):
    fake.answers = [status(403, "Forbidden", "no")]
    assert not await SigningKeys(api, lambda *given: pytest.fail("nothing to hand on")).fetch()
    assert "reviewed by the API server" in caplog.text


def review(authenticated=True, audiences=(TOKEN_AUDIENCE,)):
    extra = {"authentication.kubernetes.io/pod-uid": ["pod-0"], "authentication.kubernetes.io/pod-name": ["digits-0-a"]}
    user = {"username": "system:serviceaccount:team:default", "extra": extra}
    return 201, {"status": {"authenticated": authenticated, "audiences": list(audiences), "user": user}}


async def test_the_api_server_names_the_pod_of_a_token(fake, api):
    fake.answers = [review()]
    claimed = await SigningKeys(api, lambda *given: None).review("token")
    assert (claimed.namespace, claimed.pod_uid) == ("team", "pod-0")
    assert fake.requests[0][2]["spec"] == {"token": "token", "audiences": [TOKEN_AUDIENCE]}


@pytest.mark.parametrize("answer", [review(authenticated=False), review(audiences=["https://cluster"]), status(403, "Forbidden", "no")])
async def test_a_token_that_the_api_server_does_not_vouch_for_proves_nothing(fake, api, answer):
    fake.answers = [answer]
    with pytest.raises(Unidentified):
        await SigningKeys(api, lambda *given: None).review("token")


def lease(age):
    return 200, {"spec": {"renewTime": format_micro_time(time.time() - age), "leaseDurationSeconds": 10}}


@pytest.mark.parametrize(
    ("answer", "gone"),
    [
        (lambda: lease(5), False),
        (lambda: lease(200), False),
        (lambda: lease(400), True),
        (lambda: status(403, "Forbidden", "no"), False),
    ],
    ids=["renewed", "expired", "long expired", "unreadable"],
)
async def test_a_claimant_is_gone_when_its_lease_has_long_expired(fake, api, answer, gone):
    fake.answers = [answer()]
    changes = []
    claimants = Claimants(api, "lepton/own", lambda: changes.append(1))
    assert not claimants.gone("other/release") and not claimants.gone("lepton/own") and not claimants.gone("")
    async with running(claimants.run()):
        await until(lambda: fake.requests)
        await asyncio.sleep(0.02)
    assert claimants.gone("other/release") == gone == bool(changes)
    assert fake.requests[0][1] == "/apis/coordination.k8s.io/v1/namespaces/other/leases/release.training.lepton.ai"


async def test_a_lease_that_never_was_is_waited_for_as_long(fake, api, monkeypatch):
    monkeypatch.setattr(claims, "LONG_SECONDS", 0.1)
    monkeypatch.setattr(claims, "CHECK_SECONDS", 0.02)
    fake.answers = [status(404, "NotFound", "no")]
    claimants = Claimants(api, "lepton/own", lambda: None)
    assert not claimants.gone("other/release")
    async with running(claimants.run()):
        await until(lambda: fake.requests)
        assert not claimants.gone("other/release")
        await until(lambda: claimants.gone("other/release"))


async def test_a_claimant_that_nobody_asks_about_any_more_is_not_looked_for(fake, api, monkeypatch):
    monkeypatch.setattr(claims, "FORGET_SECONDS", 0.1)
    monkeypatch.setattr(claims, "CHECK_SECONDS", 0.01)
    fake.answers = [lease(400)]
    claimants = Claimants(api, "lepton/own", lambda: None)
    claimants.gone("old/release")
    async with running(claimants.run()):
        await until(lambda: claimants.gone("asked/release") and any("/old/" in path for _, path, _ in fake.requests))
        began = time.monotonic()
        while time.monotonic() - began < 0.2:
            assert claimants.gone("asked/release"), "what is asked about is kept"
            await asyncio.sleep(0.005)
        fake.requests.clear()
        await until(lambda: claimants.gone("asked/release") and len(fake.requests) >= 3)
        assert not [path for _, path, _ in fake.requests if "/old/" in path]
