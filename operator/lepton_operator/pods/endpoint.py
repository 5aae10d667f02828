"""Where agents find the leader: the EndpointSlices of the coordinator's Service, which has no selector, written by whoever leads.

There is one for each address family that the leader's pod has, because a slice holds one family for ever and a Service picks its own.
Every write is conditional on the resourceVersion, so a leader that was stopped and woke up again cannot overwrite the address of the one
after it; and a slice is looked at again every few seconds, because somebody may have deleted or changed it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lepton_operator.pods.api import AlreadyExists
from lepton_operator.substrate import Conflict, Gone, Rejected, Unavailable

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
RETRY_SECONDS = 0.5
PORT_NAME = "coordinator"
MANAGED_BY = "lepton-operator"
SUFFIXES = {"IPv4": "leader", "IPv6": "leader-ipv6"}
"""Of the names of the slices, by address family."""
Json = dict[str, Any]


class EndpointApi(Protocol):
    """`api.Api`."""

    async def request(self, verb: str, resource: str, path: str, *, body: Any = None) -> Json: ...


class LeaderEndpoint:
    """Keeps the Service's slices at this process's `addresses`, at most one of a family, while `leading()` says so."""

    def __init__(
        self,
        api: EndpointApi,
        *,
        namespace: str,
        service: str,
        addresses: Sequence[str],
        port: int,
        leading: Callable[[], bool],
        pod: str = "",
    ) -> None:
        self._api, self._leading = api, leading
        self._namespace, self._service = namespace, service
        self._addresses = {_family(address): address for address in reversed(addresses)}  # the first of a family
        self._port, self._pod = port, pod
        self._collection = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        self._wake = asyncio.Event()
        self._complaint = ""
        self._cleared: set[str] = set()  # families that are not ours, of which no older address is left to mislead agents
        self.written = False
        """Whether the slices, as last seen, lead here."""

    def look_now(self) -> None:
        """The Lease has just been won: agents wait for the address."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        self._cleared.clear()
        while True:
            self._wake.clear()
            pause = LOOK_SECONDS
            if self._leading():
                pause = LOOK_SECONDS if await self.level() else RETRY_SECONDS
            else:
                self.written = False
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def level(self) -> bool:
        """One look at each slice, and a write where it is due. False: try again soon."""
        self.written = False
        try:
            for family in SUFFIXES:
                if family not in self._cleared and not await self._level(family):
                    return True  # the lease ended while we looked
        except (Conflict, AlreadyExists, Gone):
            return False  # somebody else wrote it: look again
        except (Rejected, Unavailable) as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warning(
                    "the EndpointSlices of %s/%s cannot be kept, agents may not find this leader: %s", self._namespace, self._service, error
                )
            return False
        self._complaint = ""
        self.written = True
        return True

    async def _level(self, family: str) -> bool:
        """One slice; False where this process does not lead any more."""
        name, address = f"{self._service}-{SUFFIXES[family]}", self._addresses.get(family)
        try:
            found = await self._api.request("get", "endpointslices", f"{self._collection}/{name}")
        except Gone:
            found = None
        except Rejected:
            if address is not None:
                raise
            self._cleared.add(family)  # the role of an older chart: nobody has ever written it
            return True
        wanted = self._wanted(name, family, address, found)
        if wanted is None or (found is not None and _same(found, wanted)):
            if address is None:
                self._cleared.add(family)
        elif not self._leading():
            return False
        elif found is None:
            await self._api.request("create", "endpointslices", self._collection, body=wanted)
            log.info("agents find the leader at %s now", address)
        else:
            await self._api.request("update", "endpointslices", f"{self._collection}/{name}", body=wanted)
            log.info("agents find the leader at %s now", address or f"no {family} address")
        if address is not None and wanted is not None and wanted["addressType"] != family:
            raise Unavailable(f"{name} holds {wanted['addressType']} addresses for ever: delete it once")
        return True

    def _wanted(self, name: str, family: str, address: str | None, found: Json | None) -> Json | None:
        """The slice as it should be; None: it need not be there. One that cannot hold our address must not hold another's."""
        if found is None and address is None:
            return None
        kept = (found or {}).get("addressType", family)  # the API server changes it never
        metadata: Json = dict((found or {}).get("metadata") or {"name": name, "namespace": self._namespace})
        labels = {"kubernetes.io/service-name": self._service, "endpointslice.kubernetes.io/managed-by": MANAGED_BY}
        metadata["labels"] = {**(metadata.get("labels") or {}), **labels}
        endpoint: Json = {"addresses": [address], "conditions": {"ready": True}}
        if self._pod:
            endpoint["targetRef"] = {"kind": "Pod", "namespace": self._namespace, "name": self._pod}
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata,
            "addressType": kept,
            "endpoints": [endpoint] if address is not None and kept == family else [],
            "ports": [{"name": PORT_NAME, "port": self._port, "protocol": "TCP"}],
        }


def _family(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"


def _same(found: Json, wanted: Json) -> bool:
    """Whether agents would find the same by both."""

    def told(slice_: Json) -> tuple[Any, ...]:
        labels = (slice_.get("metadata") or {}).get("labels") or {}
        addresses = [endpoint.get("addresses") for endpoint in slice_.get("endpoints") or ()]
        ports = [(port.get("name"), port.get("port")) for port in slice_.get("ports") or ()]
        return slice_.get("addressType"), labels.get("kubernetes.io/service-name"), addresses, ports if addresses else ()

    return told(found) == told(wanted)
