"""A pod that hangs while its status says nothing: the kubelet's words reach the worker, and pods that are fine cost nothing."""

import asyncio
import contextlib

import pytest

from builders.api_objects import pod_body
from builders.fake_api import status
from lepton_operator.pods import diagnosis
from lepton_operator.pods.cache import PODS, Cache
from lepton_operator.pods.diagnosis import Diagnosis

STUCK = {"phase": "Pending", "state": {"waiting": {"reason": "ContainerCreating"}}}


@pytest.fixture
def cache(monkeypatch):
    monkeypatch.setattr(diagnosis, "LOOK_SECONDS", 0.01)
    cache = Cache()
    cache.apply(PODS, pod_body(**STUCK))
    return cache


@contextlib.asynccontextmanager
async def diagnosing(api, cache):
    changed = []
    task = asyncio.create_task(Diagnosis(api, cache, changed.append).run())
    try:
        async with asyncio.timeout(5):
            yield changed, task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition):
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def event(reason, message, at):
    return {"reason": reason, "message": message, "lastTimestamp": at}


async def test_the_kubelets_newest_words_become_the_workers_trouble_until_it_starts(fake, api, cache):
    old, new = (
        event("FailedMount", 'configmap "a" not found', "2026-11-25T03:00:00Z"),
        event("FailedMount", 'secret "b"', "2026-11-25T03:01:00Z"),
    )
    fake.answers = [(200, {"items": [new, old, event("BackOff", "x", "2026-11-25T03:02:00Z")]})]
    async with diagnosing(api, cache) as (changed, _):
        await until(lambda: changed)
        await asyncio.sleep(0.05)
    assert changed == [frozenset({"team/digits"})] and len(fake.requests) == 1
    assert "involvedObject.uid%3Dpod-0" in fake.requests[0][1]
    (worker,) = cache.workers("job-1")
    assert (worker.trouble, worker.trouble_message) == ("FailedMount", 'secret "b"')
    cache.apply(PODS, pod_body(version=300))
    assert cache.workers("job-1")[0].trouble == ""


@pytest.mark.parametrize(
    "pod",
    [
        {},
        {"phase": "Pending", "state": {"waiting": {"reason": "ImagePullBackOff"}}},
        {"phase": "Pending", "state": {}, "node": ""},
        STUCK | {"owners": []},
    ],
)
async def test_pods_that_run_or_say_it_themselves_are_not_asked_about(fake, api, cache, pod):
    cache.apply(PODS, pod_body(version=201, **pod))
    async with diagnosing(api, cache):
        await asyncio.sleep(0.05)
    assert fake.requests == []


async def test_a_namespace_whose_events_may_not_be_read_costs_the_others_nothing_and_is_told_once(fake, api, cache, caplog, monkeypatch):
    monkeypatch.setattr(diagnosis, "AGAIN_SECONDS", 0.02)
    for number in range(5):
        cache.apply(PODS, pod_body(name=f"p-{number}", uid=f"theirs-{number}", namespace="closed", **STUCK))
    fake.routes = {"/namespaces/closed/": status(403, "Forbidden", "cannot list events")}
    fake.answers = [(200, {"items": []})]
    async with diagnosing(api, cache):
        await until(lambda: len([path for _, path, _ in fake.requests if "/namespaces/team/" in path]) >= 3)
    assert caplog.text.count("grant `list` on events") == 1 and "namespace closed" in caplog.text
    assert len([path for _, path, _ in fake.requests if "/namespaces/closed/" in path]) == 1


async def test_a_right_that_is_granted_later_is_used(fake, api, cache, caplog, monkeypatch):
    monkeypatch.setattr(diagnosis, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(diagnosis, "REFUSED_SECONDS", 0.1)
    fake.answers = [status(403, "Forbidden", "cannot list events"), (200, {"items": [event("FailedMount", "x", "2026-11-25T03:00:00Z")]})]
    async with diagnosing(api, cache) as (changed, _):
        await until(lambda: changed)
    assert caplog.text.count("grant `list` on events") == 1


async def test_thousands_of_starting_pods_do_not_use_up_the_requests(fake, api, cache, monkeypatch):
    monkeypatch.setattr(diagnosis, "LOOK_SECONDS", 60.0)
    for number in range(1, 100):
        cache.apply(PODS, pod_body(name=f"p-{number}", uid=f"pod-{number}", **STUCK))
    fake.answers = [(200, {"items": []})]
    async with diagnosing(api, cache):
        await until(lambda: len(fake.requests) >= diagnosis.MOST)
        await asyncio.sleep(0.05)
    assert len(fake.requests) == diagnosis.MOST
