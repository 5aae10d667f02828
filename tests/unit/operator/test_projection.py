"""What a pod's status says becomes what the plan decides from, with the reporter's words for the user."""

import pytest

from builders.api_objects import node_body, pod_body
from lepton_operator.pods.projection import read_node_ready, read_pod
from lepton_operator.worker import Phase


def worker(**pod):
    return read_pod(pod_body(**pod)).worker


def terminated(code, **more):
    return {"terminated": {"exitCode": code, "startedAt": "2026-11-25T03:00:05Z", "finishedAt": "2026-11-25T03:00:09Z"} | more}


def waiting(reason, message=""):
    return {"waiting": {"reason": reason, "message": message}}


@pytest.mark.parametrize(
    ("phase", "state", "expected"),
    [
        ("Pending", waiting("ContainerCreating"), Phase.PENDING),
        ("Pending", {}, Phase.PENDING),
        ("Running", {"running": {"startedAt": "2026-11-25T03:00:05Z"}}, Phase.RUNNING),
        ("Running", terminated(0), Phase.SUCCEEDED),  # a sidecar still runs
        ("Running", terminated(1), Phase.FAILED),
        ("Succeeded", terminated(0), Phase.SUCCEEDED),
        ("Failed", terminated(1), Phase.FAILED),
        ("Failed", {}, Phase.FAILED),  # evicted before its container started
    ],
)
def test_the_phase_is_that_of_the_trainer_container(phase, state, expected):
    assert worker(phase=phase, state=state).phase is expected


@pytest.mark.parametrize(
    ("phase", "state", "lingering"),
    [
        ("Running", {"running": {"startedAt": "2026-11-25T03:00:05Z"}}, False),
        ("Running", terminated(0), True),
        ("Running", terminated(1), True),
        ("Pending", terminated(1), True),  # the sidecar's image is still pulled
        ("Succeeded", terminated(0), False),
        ("Failed", terminated(1), False),
        ("Failed", {}, False),
    ],
)
def test_a_pod_whose_trainer_has_ended_and_which_runs_on_lingers(phase, state, lingering):
    assert worker(phase=phase, state=state).lingering is lingering


@pytest.mark.parametrize("phase", ["Running", "Failed"])
def test_a_sidecar_that_is_stopped_after_the_trainer_is_not_why_it_failed(phase):
    """The kubelet ends native sidecars once the trainer has ended, most of them with 143."""
    sidecar = [{"name": "shipper", "state": terminated(143)}]
    assert worker(phase=phase, state=terminated(1), initContainerStatuses=sidecar).trouble == ""
    restarting = [{"name": "shipper", "state": waiting("CrashLoopBackOff", "back-off 10s")}]
    assert worker(initContainerStatuses=restarting).trouble == ""
    assert worker(phase="Pending", state=waiting("PodInitializing"), initContainerStatuses=sidecar).trouble == "InitContainerFailed"


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        ({"state": waiting("ImagePullBackOff", "Back-off pulling image x")}, "ImagePullBackOff", "Back-off pulling image x"),
        ({"state": waiting("CreateContainerConfigError", 'secret "s" not found')}, "CreateContainerConfigError", 'secret "s" not found'),
        ({"state": waiting("ContainerCreating")}, "", ""),
        (
            {
                "state": {},
                "node": "",
                "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}],
            },
            "Unschedulable",
            "0/3 nodes",
        ),
        ({"state": terminated(128, reason="StartError", message='exec: "nope": not found')}, "StartError", '"nope": not found'),
        (
            {
                "state": waiting("PodInitializing"),
                "initContainerStatuses": [{"name": "lepton-agent", "state": waiting("ErrImagePull", "no such host")}],
            },
            "ErrImagePull",
            "no such host",
        ),
        ({"phase": "Failed", "state": {}, "reason": "Evicted", "message": "low on memory"}, "Evicted", "low on memory"),
    ],
)
def test_trouble_keeps_the_reporters_words(pod, reason, words):
    seen = worker(phase=pod.pop("phase", "Pending"), **pod)
    assert seen.trouble == reason and words in seen.trouble_message


def test_how_the_container_ended_is_kept():
    killed = worker(phase="Failed", state=terminated(137, reason="OOMKilled", message='{"verdict": "x"}'))
    assert (killed.exit_code, killed.signal, killed.oom_killed, killed.result) == (137, 9, True, '{"verdict": "x"}')
    assert killed.ended - killed.started == 4.0
    assert worker(phase="Failed", state=terminated(3)).signal is None


@pytest.mark.parametrize("reason", ["PreemptionByScheduler", "EvictionByEvictionAPI", "DeletionByTaintManager", "TerminationByKubelet"])
def test_a_disruption_is_somebody_elses_doing(reason):
    assert worker(conditions=[{"type": "DisruptionTarget", "status": "True", "reason": reason}]).evicted == reason


def test_an_eviction_by_the_kubelet_is_read_from_the_status():
    assert worker(phase="Failed", state={}, reason="Evicted").evicted == "Evicted"
    assert worker(phase="Failed", state={}, reason="SomethingElse").evicted == ""


def test_only_a_controlling_job_owns_a_pod():
    assert read_pod(pod_body()).job_key == "team/digits"
    assert (
        read_pod(pod_body(owners=[{"apiVersion": "batch/v1", "kind": "Job", "name": "digits", "uid": "u", "controller": True}])).owner_uid
        == ""
    )
    assert read_pod(pod_body(owners=[])).owner_uid == ""


def test_a_node_whose_kubelet_went_silent_is_not_ready():
    assert read_node_ready(node_body()) and not read_node_ready(node_body(ready=False)) and not read_node_ready({})
