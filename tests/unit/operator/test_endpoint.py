"""The leader's address in the coordinator's EndpointSlice."""

import asyncio
import json
from typing import Any

import pytest

from lepton_operator.pods.api import AlreadyExists
from lepton_operator.pods.endpoint import LeaderEndpoint
from lepton_operator.substrate import Conflict, Gone, Unavailable


class Slices:
    """An API server with at most one slice."""

    def __init__(self) -> None:
        self.slice: dict[str, Any] | None = None
        self.version = 0
        self.requests: list[str] = []
        self.before_write: Any = lambda: None
        self.stored = asyncio.Event()

    async def request(self, verb: str, resource: str, path: str, *, body: Any = None) -> dict[str, Any]:
        self.requests.append(verb)
        if verb == "get":
            if self.slice is None:
                raise Gone("not found")
            return json.loads(json.dumps(self.slice))  # type: ignore[no-any-return]
        self.before_write()
        if verb == "create" and self.slice is not None:
            raise AlreadyExists("there")
        if verb == "update" and (self.slice is None or body["metadata"]["resourceVersion"] != self.slice["metadata"]["resourceVersion"]):
            raise Conflict("modified")
        return self.store(body)

    def store(self, body: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.stored.set()
        self.slice = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        return self.slice

    @property
    def address(self) -> str:
        assert self.slice is not None
        return str(self.slice["endpoints"][0]["addresses"][0])


def endpoint(api: Slices, address: str = "10.0.0.1", leading: Any = lambda: True) -> LeaderEndpoint:
    return LeaderEndpoint(api, namespace="lepton", service="coordinator", address=address, port=7443, leading=leading, pod="op-0")


async def test_the_first_leader_makes_the_slice_that_its_service_finds() -> None:
    api = Slices()
    assert await endpoint(api).level()
    assert api.slice is not None and api.slice["metadata"]["labels"]["kubernetes.io/service-name"] == "coordinator"
    assert (api.address, api.slice["addressType"], api.slice["ports"][0]["port"]) == ("10.0.0.1", "IPv4", 7443)


async def test_nothing_is_written_where_nothing_differs() -> None:
    api = Slices()
    await endpoint(api).level()
    assert await endpoint(api).level()
    assert api.requests == ["get", "create", "get"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s.update(endpoints=[]),
        lambda s: s.update(endpoints=[{"addresses": ["10.9.9.9"]}]),
        lambda s: s.update(endpoints=[*s["endpoints"], {"addresses": ["10.9.9.9"]}]),
        lambda s: s.update(ports=[{"name": "coordinator", "port": 1}]),
        lambda s: s["metadata"].update(labels={}),
    ],
)
async def test_what_somebody_changed_is_put_right(spoil: Any) -> None:
    api = Slices()
    await endpoint(api).level()
    spoil(api.slice)
    assert await endpoint(api).level()
    assert api.slice is not None and [e["addresses"] for e in api.slice["endpoints"]] == [["10.0.0.1"]]
    assert api.requests[-1] == "update"


async def test_the_next_leader_overwrites_and_the_one_that_woke_up_cannot() -> None:
    api = Slices()
    await endpoint(api).level()
    woken = endpoint(api, "10.0.0.1")
    api.slice["endpoints"][0]["addresses"] = ["10.0.0.7"]  # type: ignore[index]
    next_leader = endpoint(api, "10.0.0.2")

    def overtaken() -> None:
        api.before_write = lambda: None
        assert api.slice is not None
        api.store({**api.slice, "endpoints": [{"addresses": ["10.0.0.2"]}]})

    api.before_write = overtaken
    assert not await woken.level()
    assert api.address == "10.0.0.2"
    assert await next_leader.level()


async def test_a_lease_that_ends_between_looking_and_writing_writes_nothing() -> None:
    api = Slices()
    assert await endpoint(api, leading=lambda: False).level()
    assert api.requests == ["get"]


async def test_a_slice_that_appears_meanwhile_is_looked_at_again() -> None:
    api = Slices()

    def appears() -> None:
        api.before_write = lambda: None
        api.store({"metadata": {"name": "x"}, "endpoints": [], "ports": []})

    api.before_write = appears
    subject = endpoint(api)
    assert not await subject.level()
    assert subject.written is False


async def test_an_api_server_that_is_away_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    class Away:
        async def request(self, *_: Any, **__: Any) -> dict[str, Any]:
            raise Unavailable("nobody answers")

    subject = LeaderEndpoint(Away(), namespace="n", service="s", address="10.0.0.1", port=1, leading=lambda: True)
    assert not await subject.level() and not await subject.level()
    assert len(caplog.records) == 1


async def test_winning_the_lease_writes_the_address_at_once_and_only_then() -> None:
    api, leads = Slices(), False
    subject = endpoint(api, leading=lambda: leads)
    task = asyncio.create_task(subject.run())
    await asyncio.sleep(0)
    assert api.requests == []
    leads = True
    subject.look_now()
    await asyncio.wait_for(api.stored.wait(), 2)
    assert api.address == "10.0.0.1"
    task.cancel()
