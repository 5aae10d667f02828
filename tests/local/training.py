"""A job that runs scripts/ledger.py, as the tests of faults see it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lepton_operator import conditions
from lepton_operator.status import Status
from local.committed import Ledger
from local.lepton_run import SCRIPTS, LocalJob, listening, local_job, manifest

IMPORT_SECONDS = 120.0
"""A new worker's time to import torch on a machine that has much else to do."""


class Training:
    def __init__(self, job: LocalJob, ledger: Ledger) -> None:
        self.job, self.ledger = job, ledger
        self.ports: set[int] = set()

    def steps_on(self, more: int = 3) -> None:
        """Waits until the generation in status, with all wanted workers in it, has made so many steps that nobody had made before."""

        def goes_on() -> bool:
            status = self.job.status
            number = status.rendezvous.generation
            whole = status.rendezvous.size == status.workers.desired
            return whole and number > 0 and self.ledger.newest == number and self.ledger.new_steps() >= more

        self.job.until(goes_on, f"{more} steps of the newest generation", IMPORT_SECONDS)

    def rank_pids(self) -> dict[int, int]:
        """rank -> pid, in the newest generation."""
        return self.ledger.generations()[self.ledger.newest].pids

    def booked(self, restarts: int) -> Status:
        """The status once so many restarts are."""
        return self.job.until_status(lambda s: s.restarts.total >= restarts, f"restart {restarts} is booked")

    def nothing_lost(self) -> None:
        """Each step that is in the line by now was made once, by all, with all of its samples."""
        newest = self.ledger.generations()[self.ledger.newest]
        assert self.ledger.wrong(min(newest.resumed)) == []

    def ends_well(self) -> Status:
        """The job completes a few steps later; nothing was lost, doubled or left behind."""
        self.ledger.end_at(end := self.ledger.top + 20)
        coordinator = int((self.job.run_dir / "coordinator").read_text().rpartition(":")[2])
        metrics = int(self.job.metrics_address.rpartition("/")[0].rpartition(":")[2])
        self.job.records()
        status = self.job.until_finished()
        assert conditions.is_true(status.conditions, conditions.COMPLETE), status
        assert self.job.ended() == 0
        assert self.ledger.wrong(end) == []
        assert self.job.left_behind() == []
        stores = [made.port for made in self.ledger.generations().values()]
        assert [port for port in (coordinator, metrics, *stores) if listening(port)] == []
        return status


@contextmanager
def training(home: Path, replicas: int = 3, minimum: int = 1, extra: tuple[str, ...] = (), **spec: Any) -> Iterator[Training]:
    ledger = home / "ledger"
    command = [sys.executable, str(SCRIPTS / "ledger.py"), "--ledger", str(ledger), *extra]
    with local_job(home, manifest("faulty", command, replicas, minimum, **spec)) as job:
        ledger.mkdir()
        job.start()
        yield Training(job, Ledger(ledger))
