"""LISTs before watches: what is refused or missing is said, and one namespace costs the others nothing."""

import asyncio
import contextlib

import pytest

from builders.api_objects import job_body, node_body, pod_body
from builders.fake_api import status
from lepton_operator.pods import listing
from lepton_operator.pods.cache import Cache
from lepton_operator.pods.listing import Listener

LISTEN = Listener._listen


@pytest.fixture(autouse=True)
def without_watches(monkeypatch):
    """The watches are kopf's and are tested on a cluster."""
    monkeypatch.setattr(Listener, "_listen", lambda self: asyncio.Event().wait())
    monkeypatch.setattr(listing, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(listing, "REFUSED_SECONDS", 0.05)
    monkeypatch.setattr(listing, "RELIST_SECONDS", 0.2)
    monkeypatch.setattr(listing, "SOON_SECONDS", 0.02)


def pages(*items, version="500"):
    return 200, {"metadata": {"resourceVersion": version}, "items": list(items)}


@pytest.fixture
def world(fake, api):
    class World:
        def __init__(self):
            self.cache, self.changed, self.deleted = Cache(), [], []

        @contextlib.asynccontextmanager
        async def listening(self, *namespaces):
            self.listener = Listener(api, self.cache, namespaces, self.changed.append, self.deleted.append, lambda: None)
            task = asyncio.create_task(self.listener.run())
            try:
                async with asyncio.timeout(5):
                    yield self.listener
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    return World()


async def until(condition):
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def test_the_cluster_is_listed_before_the_operator_is_ready(fake, world):
    fake.routes = {"leptontrainingjobs": pages(job_body()), "nodes": pages(node_body(ready=False)), "pods": pages(pod_body())}
    async with world.listening() as listener:
        await listener.primed.wait()
    assert world.cache.keys() == ["team/digits"] and not world.cache.workers("job-1")[0].node_ready
    assert frozenset({"team/digits"}) in world.changed
    assert any("labelSelector=training.lepton.ai/job-name" in path for _, path, _ in fake.requests if "/pods" in path)


async def test_a_missing_crd_is_waited_for_in_words(fake, world):
    fake.routes = {"leptontrainingjobs": status(404, "NotFound", "404 page not found")}
    async with world.listening() as listener:
        await until(lambda: "CRD" in listener.why_not)
        assert not listener.primed.is_set()
        fake.routes = {"leptontrainingjobs": pages(), "pods": pages(), "nodes": pages()}
        await listener.primed.wait()


async def test_a_cluster_that_may_not_be_listed_is_waited_for_in_words(fake, world):
    fake.answers = [status(403, "Forbidden", "cannot list resource")]
    async with world.listening() as listener:
        await until(lambda: "--watch-namespace" in listener.why_not)
        assert not listener.primed.is_set()


async def test_a_refused_namespace_is_let_go_and_the_other_served(fake, world, caplog):
    other = {"leptontrainingjobs": pages(job_body(namespace="b")), "pods": pages()}
    refused = {"/a/": status(403, "Forbidden", "cannot list")}
    fake.routes = refused | other
    async with world.listening("a", "b") as listener:
        await listener.primed.wait()
        assert world.cache.keys() == ["b/digits"] and "namespace a is not served" in caplog.text
        fake.routes = {"/a/pods": pages(), "/a/": pages(job_body(namespace="a", uid="job-a"))} | other
        await until(lambda: len(world.cache.keys()) == 2)
        fake.routes = refused | other
        await until(lambda: world.cache.keys() == ["b/digits"])
        assert world.changed.count(frozenset({"a/digits"})) == 2


async def test_what_a_watch_missed_a_list_makes_good(fake, world):
    fake.routes = {
        "leptontrainingjobs": pages(job_body(), job_body(name="other", uid="job-2")),
        "pods": pages(pod_body()),
        "nodes": pages(),
    }
    async with world.listening() as listener:
        await listener.primed.wait()
        fake.routes = {"leptontrainingjobs": pages(job_body(), version="600"), "pods": pages(version="600"), "nodes": pages()}
        await until(lambda: world.cache.keys() == ["team/digits"] and world.cache.workers("job-1") == [])
    assert world.deleted == [1]


async def test_a_server_that_is_away_changes_nothing(fake, world):
    fake.routes = {"leptontrainingjobs": pages(job_body()), "pods": pages(pod_body()), "nodes": pages()}
    async with world.listening() as listener:
        await listener.primed.wait()
        fake.routes = {"/": status(503, "ServiceUnavailable", "away")}
        asked = len(fake.requests)
        await until(lambda: len(fake.requests) > asked + 3)
        assert world.cache.keys() == ["team/digits"] and listener.primed.is_set()
        assert listener._served == {None}  # nothing that watches is ended for it


async def test_a_namespace_that_may_be_read_again_gets_its_jobs_back(fake, world):
    granted = {"/a/pods": pages(pod_body(namespace="a")), "/a/": pages(job_body(namespace="a"))}
    fake.routes = granted
    async with world.listening("a") as listener:
        await listener.primed.wait()
        fake.routes = {"/a/": status(403, "Forbidden", "cannot list")}
        await until(lambda: world.cache.keys() == [])
        assert world.cache.workers("job-1") == []
        fake.routes = granted
        await until(lambda: world.cache.keys() == ["a/digits"] and world.cache.workers("job-1"))


async def test_watches_that_are_cancelled_from_within_start_again(api, monkeypatch, caplog):
    started = []

    async def broken(*_):
        started.append(1)
        raise asyncio.CancelledError

    monkeypatch.setattr(listing, "listen_until_broken", broken)
    listener = Listener(api, Cache(), (), lambda _: None, lambda _: None, lambda: None)
    monkeypatch.setattr(listener, "_list_all", lambda: asyncio.sleep(0))
    task = asyncio.create_task(LISTEN(listener))
    async with asyncio.timeout(5):
        await until(lambda: len(started) == 2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
