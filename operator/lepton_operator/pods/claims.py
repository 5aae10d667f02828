"""Whether another installation that has claimed a job still lives: its Lease tells. A job is taken over only when that long expired."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from lepton_operator import clock
from lepton_operator.constants import lease_name
from lepton_operator.job import parse_time
from lepton_operator.pods.api import AlreadyExists, Api, Expired
from lepton_operator.substrate import Conflict, Gone, Rejected, Unavailable

log = logging.getLogger(__name__)

LONG_SECONDS = 300.0
CHECK_SECONDS = 60.0
FORGET_SECONDS = 600.0
"""A claimant that nobody has asked about for so long has no job here any more."""


@dataclass(slots=True)
class _Claimant:
    asked: float  # clock.mono of the last question
    gone: bool = False
    missing_since: float | None = None  # unix seconds, of a Lease that does not exist


class Claimants:
    """Answers from memory; asks the API server in the background once a minute for each claimant that was asked about."""

    def __init__(self, api: Api, own: str, changed: Callable[[], None]) -> None:
        self._api, self._own, self._changed = api, own, changed
        self._known: dict[str, _Claimant] = {}
        self._asked = asyncio.Event()

    def gone(self, manager: str) -> bool:
        """True when the installation "namespace/release" has not renewed its Lease for long; false while that is not known."""
        if not manager or manager == self._own:
            return False
        if manager not in self._known:
            self._known[manager] = _Claimant(clock.mono())
            self._asked.set()
        self._known[manager].asked = clock.mono()
        return self._known[manager].gone

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._asked.clear()
            before = clock.mono() - FORGET_SECONDS
            self._known = {manager: claimant for manager, claimant in self._known.items() if claimant.asked >= before}
            for manager, claimant in list(self._known.items()):
                gone = await self._look(manager, claimant)
                if gone != claimant.gone:
                    claimant.gone = gone
                    self._changed()
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    await self._asked.wait()
            except TimeoutError:
                continue

    async def _look(self, manager: str, claimant: _Claimant) -> bool:
        namespace, _, release = manager.partition("/")
        now = time.time()
        try:
            path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{lease_name(release)}"
            spec = (await self._api.request("get", "leases", path)).get("spec") or {}
        except Gone:
            claimant.missing_since = claimant.missing_since or now
            return now - claimant.missing_since > LONG_SECONDS
        except (AlreadyExists, Conflict, Expired, Rejected, Unavailable) as error:
            log.debug("the lease of %s cannot be read: %s", manager, error)
            return claimant.gone
        claimant.missing_since = None
        renewed = parse_time(str(spec.get("renewTime") or ""))
        return now - renewed - float(spec.get("leaseDurationSeconds") or 0) > LONG_SECONDS
