"""The leader's address in the coordinator's EndpointSlice."""

import asyncio
import json
from typing import Any

import pytest

from lepton_operator.pods.api import AlreadyExists
from lepton_operator.pods.endpoint import LeaderEndpoint
from lepton_operator.substrate import Conflict, Gone, Rejected, Unavailable

NAME = "coordinator-leader"


class Slices:
    """An API server with the Service's slices; `slice` and `requests` are those of the IPv4 one."""

    def __init__(self) -> None:
        self.slices: dict[str, dict[str, Any]] = {}
        self.version = 0
        self.requests: list[str] = []
        self.other_requests: list[str] = []
        self.before_write: Any = lambda: None
        self.stored = asyncio.Event()

    async def request(self, verb: str, resource: str, path: str, *, body: Any = None) -> dict[str, Any]:
        name = body["metadata"]["name"] if verb == "create" else path.rpartition("/")[2]
        (self.requests if name == NAME else self.other_requests).append(verb)
        if verb == "get":
            if name not in self.slices:
                raise Gone("not found")
            return json.loads(json.dumps(self.slices[name]))  # type: ignore[no-any-return]
        self.before_write()
        found = self.slices.get(name)
        if verb == "create" and found is not None:
            raise AlreadyExists("there")
        if verb == "update" and (found is None or body["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]):
            raise Conflict("modified")
        if found is not None and body["addressType"] != found["addressType"]:
            raise Rejected("Invalid", "addressType: field is immutable")
        return self.store(body)

    def store(self, body: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.stored.set()
        stored = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.version)}}
        self.slices[body["metadata"]["name"]] = stored
        return stored

    @property
    def slice(self) -> dict[str, Any] | None:
        return self.slices.get(NAME)

    @property
    def address(self) -> str:
        (address,) = self.addresses(NAME)
        return address

    def addresses(self, name: str) -> list[str]:
        return [address for endpoint in self.slices[name]["endpoints"] for address in endpoint["addresses"]]


def endpoint(api: Any, *addresses: str, leading: Any = lambda: True) -> LeaderEndpoint:
    return LeaderEndpoint(
        api, namespace="lepton", service="coordinator", addresses=addresses or ("10.0.0.1",), port=7443, leading=leading, pod="op-0"
    )


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
        api.store({"metadata": {"name": NAME}, "addressType": "IPv4", "endpoints": [], "ports": []})

    api.before_write = appears
    subject = endpoint(api)
    assert not await subject.level()
    assert subject.written is False


async def test_an_api_server_that_is_away_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    class Away:
        async def request(self, *_: Any, **__: Any) -> dict[str, Any]:
            raise Unavailable("nobody answers")

    subject = endpoint(Away())
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


async def test_a_leader_with_two_address_families_is_found_by_a_service_of_either() -> None:
    api = Slices()
    subject = endpoint(api, "fd00::1", "10.0.0.1")
    assert await subject.level() and subject.written
    assert {s["addressType"]: api.addresses(name) for name, s in api.slices.items()} == {"IPv4": ["10.0.0.1"], "IPv6": ["fd00::1"]}
    assert {s["metadata"]["labels"]["kubernetes.io/service-name"] for s in api.slices.values()} == {"coordinator"}
    before = api.version
    assert await subject.level() and api.version == before


async def test_an_address_of_a_family_that_the_next_leader_lacks_is_taken_away_and_looked_for_once() -> None:
    api = Slices()
    await endpoint(api, "10.0.0.1", "fd00::1").level()
    subject = endpoint(api, "fd00::2")
    for _ in range(3):
        assert await subject.level()
    assert api.addresses(NAME) == [] and api.addresses("coordinator-leader-ipv6") == ["fd00::2"]
    looks = api.requests.count("get")
    assert await subject.level() and api.requests.count("get") == looks


async def test_a_slice_that_can_never_hold_our_address_holds_no_other_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    api = Slices()
    await endpoint(api).level()
    assert api.slice is not None
    api.slice.update(addressType="IPv6", endpoints=[{"addresses": ["fd00::9"]}])
    assert not await endpoint(api).level()
    assert api.addresses(NAME) == [] and "delete it once" in caplog.text
    del api.slices[NAME]
    assert await endpoint(api).level() and api.address == "10.0.0.1"


async def test_a_role_that_knows_no_other_family_is_enough() -> None:
    class Narrow(Slices):
        async def request(self, verb: str, resource: str, path: str, *, body: Any = None) -> dict[str, Any]:
            if path.endswith("-ipv6"):
                raise Rejected("Forbidden", "no")
            return await super().request(verb, resource, path, body=body)

    api = Narrow()
    subject = endpoint(api)
    assert await subject.level() and subject.written and api.address == "10.0.0.1"
