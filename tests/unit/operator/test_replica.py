"""What one process does at the edges of its leadership."""

import asyncio
import types

import pytest

from builders.lease_store import LeaseStore
from lepton_operator.config import read_config
from lepton_operator.replica import NOT_LEADING_SECONDS, Replica


async def test_a_job_that_comes_up_between_a_deadline_and_its_late_renewal_is_looked_at_after_it(monkeypatch):
    """The renewal ends no leadership, so nobody would add the job again."""
    replica = Replica(read_config(["--namespace=lepton", "--trainer-image=t:1"], {"POD_IP": "10.0.0.1"}))
    lease, looked = types.SimpleNamespace(leading=False), []

    async def reconcile(key):
        looked.append(key)

    monkeypatch.setattr(replica, "_lease", lease, raising=False)
    monkeypatch.setattr(replica, "_reconciler", types.SimpleNamespace(reconcile=reconcile))
    assert await replica._look("team/digits") == NOT_LEADING_SECONDS
    assert looked == []
    lease.leading = True
    await replica._look("team/digits")
    assert looked == ["team/digits"]


async def test_the_end_of_what_reads_the_signing_keys_ends_the_operator(monkeypatch):
    """Without it agents would be refused one by one as the cluster rotates its keys, and nobody would know why."""
    replica = Replica(read_config(["--namespace=lepton", "--trainer-image=t:1"], {"POD_IP": "10.0.0.1"}))

    async def run():
        raise RuntimeError("a fault of ours")

    async def start():
        return None

    monkeypatch.setattr(replica, "_substrate", None, raising=False)
    monkeypatch.setattr(replica, "_claimants", types.SimpleNamespace(gone=None), raising=False)
    monkeypatch.setattr(replica, "_keys", types.SimpleNamespace(run=run), raising=False)
    await replica._start_coordinator(types.SimpleNamespace(start=start, lead=lambda deadline: None))
    async with asyncio.timeout(5):
        await replica._stopping.wait()
    assert replica._exit_code == 1


@pytest.mark.parametrize(("pod", "taken"), [({"POD_NAME": "lepton-0"}, True), ({}, False)])
async def test_only_in_a_pod_the_holder_of_the_same_name_is_known_to_be_dead(pod, taken):
    """Elsewhere two processes may have one number, and so one name: both would lead."""

    def replica():
        return Replica(read_config(["--namespace=lepton", "--trainer-image=t:1"], {"POD_IP": "10.0.0.1", **pod}))

    store = LeaseStore()
    first, second = replica()._lease_keeper(store), replica()._lease_keeper(store)
    for keeper in (first, second):
        keeper.turn()
    assert first.leading
    assert second.leading is taken
