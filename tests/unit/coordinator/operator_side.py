"""A coordinator link over loopback, and a way to wait for what it is told."""

import asyncio
from collections.abc import Callable
from typing import Any

from lepton_operator.coordinator.link import CoordinatorLink
from simulated_agent import SimulatedAgent
from unit.coordinator.orders import JOB

TIMEOUT = 10.0


class Operator:
    def __init__(self) -> None:
        self.changes: list[str] = []
        self._news = asyncio.Event()
        self.link = CoordinatorLink(listen=("127.0.0.1", 0), tls=None, on_change=self._changed)

    def _changed(self, job: str) -> None:
        self.changes.append(job)
        self._news.set()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def agent(self, uid: str, boot: str = "a") -> Any:
        return next((a for a in self.link.agents(JOB) if (a.uid, a.boot) == (uid, boot)), None)

    async def join(self, worker: int = 0, **changes: Any) -> SimulatedAgent:
        agent = await SimulatedAgent(worker=worker, **changes).connect(self.link.port)
        await agent.until(lambda a: a.welcome and a.order)
        await self.until(lambda: (known := self.agent(agent.uid, agent.boot)) and known.connected)
        return agent
