"""Any script, in any image: what a process finds around it, and what of the job's fields reaches its pod."""

import json
import re
from typing import Any

from kube import Object
from trainings import SCRIPTS, Training, Trainings

SHOW = "import json, os, sys; print('ENV ' + json.dumps(dict(os.environ))); print('ARGV ' + json.dumps(sys.argv))"
COLD = {"name": "LEPTON_WARM_START", "value": "0"}


def shown(job: Training, index: int = 0) -> dict[int, dict[str, str]]:
    """Rank -> environment, as the processes of one worker printed it."""
    log = job.logs(job.pods()[index]["metadata"]["name"])
    return {int(rank): json.loads(text) for rank, text in re.findall(r"\[rank (\d+)\] ENV (.*)", log)}


def trainer(pod: Object) -> dict[str, Any]:
    container: dict[str, Any] = next(c for c in pod["spec"]["containers"] if c["name"] == "trainer")
    return container


def test_the_environment_is_torchruns_and_leptons_and_the_users(trainings: Trainings) -> None:
    """B02: one entry for each name, the user's value wins, and what is ours to set is told."""
    trainings.kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"FROM_MAP": "yes"}})
    wanted = {"PYTHONUNBUFFERED": "0", "OMP_NUM_THREADS": "3", "NCCL_DEBUG": "WARN"}
    env = [COLD, *({"name": name, "value": value} for name, value in wanted.items())]
    ours = {"spec": {"containers": [{"name": "trainer", "env": [{"name": "RANK", "value": "7"}]}]}}
    job = trainings.plain(
        "env",
        SHOW,
        trainer={"args": ["--flag", "a b"], "env": env, "envFrom": [{"configMapRef": {"name": "settings"}}]},
        workers={"replicas": 2, "template": ours},
    )
    assert job.wait("Finished")["state"] == "Complete"
    for index, pod in enumerate(job.pods()):
        names = [entry["name"] for entry in trainer(pod)["env"]]
        assert len(names) == len(set(names))
        found = shown(job, index)[index]
        assert found | wanted | {"FROM_MAP": "yes"} == found
        torchrun = {
            "RANK": str(index),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "1",
            "GROUP_RANK": str(index),
            "GROUP_WORLD_SIZE": "2",
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        lepton = {
            "LEPTON_JOB_NAME": job.name,
            "LEPTON_JOB_TOTAL_WORKERS": "2",
            "LEPTON_JOB_WORKER_INDEX": str(index),
            "LEPTON_JOB_FAILURE_COUNT": "0",
            "LEPTON_JOB_WORKER_PREFIX": job.name,
            "LEPTON_JOB_SERVICE_PREFIX": job.name,
            "LEPTON_SUBDOMAIN": "",
            "LEPTON_WORKER_ID": pod["metadata"]["name"],
            "LEPTON_RESOURCE_ACCELERATOR_NUM": "0",
        }
        assert found | torchrun | lepton == found
        assert found["MASTER_ADDR"] == job.pods()[0]["status"]["podIP"] and int(found["MASTER_PORT"]) > 0
        assert found["HOME"] and found["USER"], "an unknown user needs both"
        assert not [name for name in found if "TOKEN" in name], "the agent's own secrets stay with it"
    assert 'ARGV ["-c", "--flag", "a b"]' in job.logs(job.pods()[0]["metadata"]["name"])
    told = [event["note"] for event in job.events() if event["reason"] == "EnvironmentIgnored"]
    assert told and "RANK" in told[0]


def test_a_worker_has_as_many_processes_as_its_pod_has_gpus(trainings: Trainings) -> None:
    resources = {"limits": {"nvidia.com/gpu": "2"}}
    job = trainings.plain("gpus", SHOW, workers={"replicas": 2, "resources": resources})
    assert job.wait("Finished")["state"] == "Complete"
    for index in (0, 1):
        found = shown(job, index)
        assert sorted(found) == [2 * index, 2 * index + 1]
        for rank, env in found.items():
            assert (env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"], env["LOCAL_RANK"]) == ("4", "2", str(rank % 2))
            assert (env["LEPTON_RESOURCE_ACCELERATOR_NUM"], env["LEPTON_RESOURCE_ACCELERATOR_TYPE"]) == ("2", "nvidia.com/gpu")
            assert env["OMP_NUM_THREADS"] == "1"


def test_an_image_that_knows_nothing_of_us_gets_the_agent_by_an_init_container(trainings: Trainings) -> None:
    # The same image under another name, and the Python in it that does not see what we have put there: torch and nothing of ours.
    image = f"docker.io/{trainings.operator.images['trainer']}"
    job = trainings.group("foreign", trainer={"image": image, "command": ["/usr/bin/python3", "group.py"], "code": {"configMap": SCRIPTS}})
    job.steps_in_generation(1, 120)
    (init,) = job.pods()[0]["spec"]["initContainers"]
    assert init["name"] == "lepton-agent"
    assert trainer(job.pods()[0])["command"][:2] == ["/usr/bin/python3", "/opt/lepton-agent/lepton_trainer/agent"]
    status = job.complete()
    assert status["progress"]["step"] == job.ledger().final, "report() works there, too"


def test_numbers_are_taken_from_the_log_of_a_script_that_reports_nothing(trainings: Trainings) -> None:
    script = "import time\nfor i in range(1, 61): print(f'it {i}/60: nll={1 / i:.6f} ({32} seqs)', flush=True); time.sleep(0.1)"
    patterns = {"step": r"it (\d+)/", "total_steps": r"it \d+/(\d+)", "loss": r"nll=([0-9.]+)", "samples": r"\((\d+) seqs"}
    from_logs = [{"name": name, "pattern": pattern} for name, pattern in patterns.items()]
    job = trainings.plain("logs", script, metrics={"fromLogs": from_logs})
    progress = job.wait("Finished")["progress"]
    assert (progress["step"], progress["totalSteps"], progress["percent"], progress["loss"]) == (60, 60, "100%", "0.01667")
    assert 200 < float(progress["samplesPerSecond"]) < 400
    assert job.condition("Complete")["status"] == "True"


def test_the_template_and_the_other_fields_reach_the_pod(trainings: Trainings) -> None:
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    sidecar = {
        "name": "sidecar",
        "image": trainings.operator.images["operator"],
        "command": ["sleep", "600"],
        "restartPolicy": "Always",
        "securityContext": security,
    }
    template = {
        "metadata": {"labels": {"team": "vision"}, "annotations": {"note": "kept"}},
        "spec": {
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "terminationGracePeriodSeconds": 7,
            "initContainers": [sidecar],
            "containers": [{"name": "trainer", "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}],
            "volumes": [{"name": "scratch", "emptyDir": {}}],
        },
    }
    script = (
        "import os, socket; shm = os.statvfs('/dev/shm'); print('SHM', shm.f_blocks * shm.f_frsize);"
        "open('/scratch/x', 'w').close(); print('CWD', os.getcwd());"
        "print('PEER', socket.gethostbyname(os.environ['LEPTON_JOB_NAME'] + '-1.' + os.environ['LEPTON_SUBDOMAIN']))"
    )
    job = trainings.plain(
        "template",
        script,
        trainer={"workingDir": "/tmp"},
        workers={"replicas": 2, "sharedMemory": "48Mi", "template": template},
        intraJobCommunication=True,
    )
    assert job.wait("Finished")["state"] == "Complete"
    for pod in job.pods():
        assert pod["metadata"]["labels"]["team"] == "vision" and pod["metadata"]["annotations"]["note"] == "kept"
        assert pod["spec"]["nodeSelector"] == {"kubernetes.io/os": "linux"} and pod["spec"]["terminationGracePeriodSeconds"] == 7
        assert "sidecar" in [container["name"] for container in pod["spec"]["initContainers"]]
    log = job.logs(job.pods()[0]["metadata"]["name"])
    assert f"SHM {48 << 20}" in log and "CWD /tmp" in log
    assert f"PEER {job.pods()[1]['status']['podIP']}" in log
    service = job.kubectl.get("service", job.name)
    assert service["spec"]["clusterIP"] == "None"
    assert service["metadata"]["ownerReferences"][0]["uid"] == job.body()["metadata"]["uid"]


def test_a_script_that_always_dies_runs_as_often_as_its_budget_allows(trainings: Trainings) -> None:
    """B11: however fast it dies, each time counts."""
    script = "import os, signal; print('RUN', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    job = trainings.plain("dies", script, recovery={"maxRestarts": 2})
    status = job.wait("Finished")
    assert (status["state"], status["reason"], status["restarts"]["total"]) == ("Failed", "RestartBudgetExceeded", 3)
    assert status["lastFailure"]["signal"] == 9 and "SIGKILL" in status["message"]
    (pod,) = job.pods()
    assert job.logs(pod["metadata"]["name"]).count("RUN") == 3, "in the same pod"


def test_output_that_is_no_text_ends_no_run_and_reaches_the_status_readably(trainings: Trainings) -> None:
    """B25: Latin-1, NUL, escape codes and a glyph that a limit cuts."""
    noise = (
        "import sys\n"
        "sys.stdout.buffer.write(b'caf\\xe9 \\x00 \\x1b[31mred\\x1b[0m\\n' + '\\u00e4'.encode() * 1500 + b'\\n')\n"
        "sys.stdout.flush()\n"
        "sys.exit({})"
    )
    good = trainings.plain("noise-good", noise.format(0))
    bad = trainings.plain("noise-bad", noise.format(3), recovery={"maxRestarts": 0})
    assert good.wait("Finished")["state"] == "Complete"
    status = bad.wait("Finished")
    assert (status["state"], status["lastFailure"]["exitCode"]) == ("Failed", 3)
    tail = status["lastFailure"]["logTail"]
    assert tail.endswith("ä\n") or tail.endswith("ä")
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", tail) and len(tail.encode()) <= 2048
