"""What one process does at the edges of its leadership."""

import types

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
