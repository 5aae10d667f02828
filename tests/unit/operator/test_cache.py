"""The cache never goes backwards, whatever order watches, LISTs and write responses arrive in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.api_objects import copied, job_body, node_body, owner, pod_body
from lepton_operator.job import JobError
from lepton_operator.pods.cache import JOBS, NODES, PODS, Cache

KEY = "team/digits"


def test_a_job_is_read_once_and_a_change_names_its_key():
    cache = Cache()
    assert cache.apply(JOBS, job_body()) == {KEY}
    assert cache.apply(JOBS, job_body()) == set()
    assert cache.job(KEY).workers.replicas == 2 and cache.job_uid(KEY) == "job-1"
    assert cache.job("team/other") is None


def test_an_unreadable_job_is_told_to_whoever_asks_and_hides_nobody():
    cache = Cache()
    cache.apply(JOBS, job_body(trainer={"command": []}))
    cache.apply(JOBS, job_body(name="strange", uid="job-2", workers={"template": 7, "replicas": {}}))
    cache.apply(JOBS, job_body(name="fine", uid="job-3"))
    for key in (KEY, "team/strange"):
        with pytest.raises(JobError):
            cache.job(key)
    assert cache.job("team/fine")


def test_an_older_version_never_replaces_a_newer_one():
    cache = Cache()
    cache.apply(PODS, pod_body(version=210, phase="Failed", state={}))
    assert cache.apply(PODS, pod_body(version=209)) == set()
    assert cache.workers("job-1")[0].phase == "Failed"


def test_versions_are_numbers_and_not_text():
    cache = Cache()
    cache.apply(PODS, pod_body(version=99))
    assert cache.apply(PODS, pod_body(version=100, phase="Failed", state={})) == {KEY}


def test_a_deleted_uid_never_comes_back_and_its_name_can_be_used_again():
    cache = Cache()
    cache.apply(PODS, pod_body(version=200))
    assert cache.apply(PODS, pod_body(version=205), deleted=True) == {KEY}
    assert cache.apply(PODS, pod_body(version=201)) == set()  # the response to the create, late
    assert cache.workers("job-1") == []
    assert cache.apply(PODS, pod_body(uid="pod-0b", version=206)) == {KEY}


def test_a_deletion_of_an_earlier_object_of_the_name_takes_nothing_away():
    cache = Cache()
    cache.apply(JOBS, job_body(uid="new", version=300))
    assert cache.apply(JOBS, job_body(uid="old", version=299), deleted=True) == set()
    assert cache.job_uid(KEY) == "new"


def test_pods_belong_to_the_uid_that_controls_them():
    cache = Cache()
    cache.apply(PODS, pod_body())
    cache.apply(PODS, pod_body(name="digits-1-b", uid="pod-1", index=1, owners=[owner(uid="job-of-before")]))
    assert cache.apply(PODS, pod_body(name="stray", uid="pod-2", owners=[])) == set()
    assert [worker.name for worker in cache.workers("job-1")] == ["digits-0-aaaaa"]


def test_a_change_that_no_decision_reads_wakes_nobody_but_its_version_counts():
    cache = Cache()
    cache.apply(PODS, pod_body(version=200))
    assert cache.apply(PODS, pod_body(version=201, conditions=[{"type": "Ready", "status": "True"}])) == set()
    assert cache.workers("job-1")[0].resource_version == "201"


def test_a_node_that_is_not_ready_concerns_the_jobs_on_it_once():
    cache = Cache()
    cache.watch_nodes()
    cache.apply(NODES, node_body())
    cache.apply(PODS, pod_body())
    assert cache.workers("job-1")[0].node_ready
    assert cache.apply(NODES, node_body(ready=False, version=11)) == {KEY}
    assert cache.apply(NODES, node_body(ready=False, version=12)) == set()
    assert not cache.workers("job-1")[0].node_ready
    cache.apply(NODES, node_body(version=13))
    assert cache.apply(NODES, node_body(version=14), deleted=True) == {KEY}
    assert not cache.workers("job-1")[0].node_ready


def test_without_node_rights_no_node_is_suspected():
    cache = Cache()
    cache.apply(PODS, pod_body())
    assert cache.workers("job-1")[0].node_ready


def test_what_a_whole_list_lacks_is_gone_unless_it_is_newer_or_elsewhere():
    cache = Cache()
    cache.apply(PODS, pod_body(name="a", uid="a", version=200))
    cache.apply(PODS, pod_body(name="b", uid="b", version=290))
    cache.apply(PODS, pod_body(name="c", uid="c", version=200, namespace="elsewhere"))
    cache.apply(PODS, pod_body(name="d", uid="d", version=200))
    assert cache.forget_missing(PODS, "team", {"d"}, "250") == {KEY}
    assert {pod.worker.name for pod in cache.pods()} == {"b", "c", "d"}
    cache.forget_missing(PODS, None, set(), "1000")
    assert list(cache.pods()) == []


CHANGES = st.permutations(range(1, 7))


@settings(max_examples=200, deadline=None)
@given(CHANGES, st.integers(0, 6), st.integers(0, 5))
def test_once_deleted_it_stays_so_in_any_order(order, deleted_at, repeated):
    """Six versions of one pod arrive in any order, one of them twice, and its deletion at any moment, before all of them too."""
    cache = Cache()
    bodies = [pod_body(version=200 + number, phase="Running", node=f"node-{number}") for number in order]
    for step, body in enumerate([*bodies, bodies[repeated]]):
        if step == deleted_at:
            cache.apply(PODS, pod_body(version=300), deleted=True)
        cache.apply(PODS, copied(body))
    assert cache.workers("job-1") == []


@settings(max_examples=200, deadline=None)
@given(CHANGES, st.integers(0, 5))
def test_in_any_order_without_a_deletion_the_highest_version_wins(order, repeated):
    cache = Cache()
    bodies = [pod_body(version=200 + number, node=f"node-{number}") for number in order]
    for body in [*bodies, bodies[repeated]]:
        cache.apply(PODS, copied(body))
    assert cache.workers("job-1")[0].node == "node-6"
