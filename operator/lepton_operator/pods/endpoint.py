"""Where agents find the leader: the one EndpointSlice of the coordinator's Service, which has no selector, written by whoever leads.

Every write is conditional on the resourceVersion, so a leader that was stopped and woke up again cannot overwrite the address of the one
after it; and the slice is looked at again every few seconds, because somebody may have deleted or changed it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from lepton_operator.pods.api import AlreadyExists
from lepton_operator.substrate import Conflict, Gone, Rejected, Unavailable

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
RETRY_SECONDS = 0.5
PORT_NAME = "coordinator"
MANAGED_BY = "lepton-operator"
Json = dict[str, Any]


class EndpointApi(Protocol):
    """`api.Api`."""

    async def request(self, verb: str, resource: str, path: str, *, body: Any = None) -> Json: ...


class LeaderEndpoint:
    """Keeps the Service's slice at this process's address while `leading()` says so."""

    def __init__(
        self, api: EndpointApi, *, namespace: str, service: str, address: str, port: int, leading: Callable[[], bool], pod: str = ""
    ) -> None:
        self._api, self._leading = api, leading
        self._namespace, self._service, self._name = namespace, service, f"{service}-leader"
        self._address, self._port, self._pod = address, port, pod
        self._collection = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        self._wake = asyncio.Event()
        self._complaint = ""
        self.written = False
        """Whether the slice, as last seen, leads here."""

    def look_now(self) -> None:
        """The Lease has just been won: agents wait for the address."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
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
        """One look, and a write if it is due. False: try again soon."""
        self.written = False
        try:
            try:
                found = await self._api.request("get", "endpointslices", f"{self._collection}/{self._name}")
            except Gone:
                found = None
            if found is None or not self._says_so(found):
                if not self._leading():
                    return True  # the lease ended while we looked
                await self._write(found)
                log.info("agents find the leader at %s:%d now", self._address, self._port)
        except (Conflict, AlreadyExists, Gone):
            return False  # somebody else wrote it: look again
        except (Rejected, Unavailable) as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warning(
                    "the EndpointSlice %s/%s cannot be kept, agents may not find this leader: %s", self._namespace, self._name, error
                )
            return False
        self._complaint = ""
        self.written = True
        return True

    def _says_so(self, found: Mapping[str, Any]) -> bool:
        wanted = self._body(None)
        labels = (found.get("metadata") or {}).get("labels") or {}
        addresses = [endpoint.get("addresses") for endpoint in found.get("endpoints") or ()]
        ports = [(port.get("name"), port.get("port")) for port in found.get("ports") or ()]
        return (
            labels.get("kubernetes.io/service-name") == self._service
            and addresses == [[self._address]]
            and ports == [(PORT_NAME, self._port)]
            and found.get("addressType") == wanted["addressType"]
        )

    async def _write(self, found: Json | None) -> None:
        if found is None:
            await self._api.request("create", "endpointslices", self._collection, body=self._body(None))
            return
        if found.get("addressType") != self._body(None)["addressType"]:
            # The address family is immutable: a cluster that changed it gets a new slice at the next look.
            raise Unavailable(f"it holds {found.get('addressType')} addresses: delete it once")
        await self._api.request("update", "endpointslices", f"{self._collection}/{self._name}", body=self._body(found))

    def _body(self, found: Json | None) -> Json:
        metadata: Json = dict((found or {}).get("metadata") or {"name": self._name, "namespace": self._namespace})
        labels = {"kubernetes.io/service-name": self._service, "endpointslice.kubernetes.io/managed-by": MANAGED_BY}
        metadata["labels"] = {**(metadata.get("labels") or {}), **labels}
        endpoint: Json = {"addresses": [self._address], "conditions": {"ready": True}}
        if self._pod:
            endpoint["targetRef"] = {"kind": "Pod", "namespace": self._namespace, "name": self._pod}
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata,
            "addressType": "IPv6" if ":" in self._address else "IPv4",
            "endpoints": [endpoint],
            "ports": [{"name": PORT_NAME, "port": self._port, "protocol": "TCP"}],
        }
