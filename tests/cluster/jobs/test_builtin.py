"""The built-in trainer as a job of a cluster: a few lines of manifest, a worker killed in the middle, a trained network on the claim."""

import json
from pathlib import Path
from typing import Any

import yaml

from cluster import prometheus
from kube import eventually
from trainings import CLAIM, WINDOW, Training, Trainings

EXAMPLE = Path(__file__).parents[3] / "examples" / "digits-builtin.yaml"
TRAINING_SAMPLES = 1348
THREAD = {"name": "OMP_NUM_THREADS", "value": "1"}
"""The workers share this machine's cores."""
OUTPUT = """
import json, pathlib, sys
folder = pathlib.Path("/checkpoints", sys.argv[1], "round-0")
result = folder / "result.json"
rows = []
for file in sorted(folder.glob("ledger-*.jsonl")):
    for line in file.read_text().split("\\n")[:-1]:
        rows.append(json.loads(line))
print(json.dumps({
    "result": json.loads(result.read_text()) if result.exists() else None,
    "png": (folder / "curves.png").exists(),
    "prepared": len(list((folder.parent / "cache" / "data").glob("*/facts.json"))),
    "ledger": rows,
}))
"""


def output(job: Training) -> dict[str, Any]:
    """What the trainer left beside its checkpoints."""
    found: dict[str, Any] = json.loads(job.kubectl("exec", WINDOW, "--", "python3", "-c", OUTPUT, job.name))
    return found


def committed(rows: list[dict[str, Any]], last: int) -> list[tuple[int, int]]:
    """(epoch, sample) of all steps up to `last` that are in the line, the newest generation first, each until what it resumed from."""
    starts = {row["generation"]: row["resume"] for row in rows if "resume" in row}
    taken: list[tuple[int, int]] = []
    generation, end = max(starts), last
    while True:
        origin = starts[generation]
        begin = origin["step"] if origin else 0
        for row in rows:
            if row["generation"] == generation and "step" in row and begin < row["step"] <= end:
                taken += zip(row["epochs"], row["samples"], strict=True)
        if not origin:
            return taken
        generation, end = origin["generation"], begin


def started(trainings: Trainings, name: str, epochs: int, **changes: Any) -> Training:
    *_, body = yaml.safe_load_all(EXAMPLE.read_text())
    spec = body["spec"]
    task = spec["trainer"]["builtin"]["imageClassification"]
    task["training"]["epochs"] = epochs
    task |= {"checkpoint": {"everySteps": 40}, "output": {"ledger": True}}
    spec["trainer"]["env"] = [THREAD]
    spec["checkpoint"] = {"claimName": CLAIM, "path": name}
    return trainings.start(name, {**spec, **changes}, exactly=True)


def test_digits_are_learnt_by_the_built_in_trainer_with_a_worker_lost_in_the_middle(trainings: Trainings) -> None:
    server = prometheus.start()
    job = started(trainings, "builtin-digits", epochs=12)
    total = -(-12 * TRAINING_SAMPLES // 32)

    def step() -> int:
        return int(job.status().get("progress", {}).get("step") or 0)

    eventually(lambda: step() >= 100, 120, interval=0.5)
    before = job.agents()
    job.kubectl("delete", "pod", job.pods()[1]["metadata"]["name"], "--force", "--grace-period=0")
    eventually(lambda: job.status()["rendezvous"]["generation"] >= 2, 60)
    assert job.agents()[0] == before[0], "the survivor stays"

    matching = f'namespace="{trainings.namespace}",job_name="{job.name}",worker="0"'
    for figure in ("accuracy", "learning_rate", "gradient_norm", "data_wait_ratio", "memory_bytes"):
        query = f'lepton_train_metric{{{matching},name="{figure}"}}'
        eventually(lambda query=query: server.query(query), 120, interval=0.5)

    status = job.wait("Finished", 300)
    assert status["state"] == "Complete", status.get("message")
    assert status["progress"]["step"] == status["progress"]["totalSteps"] == total
    assert status["restarts"].get("recent", []) == [], "a deleted pod costs no budget"
    found = output(job)
    assert found["result"]["finished"] and found["result"]["accuracy"] >= 0.97
    assert found["png"] and found["prepared"] == 1
    assert status["checkpoint"]["step"] == total

    taken = committed(found["ledger"], total)
    assert len(taken) == len(set(taken)) == 12 * TRAINING_SAMPLES, "each sample once in each epoch"


def test_what_it_cannot_use_fails_the_job_at_once_in_its_own_words(trainings: Trainings) -> None:
    builtin = {"imageClassification": {"data": {"source": "folder", "path": "/nowhere"}}}
    job = trainings.start("builtin-data", {"trainer": {"builtin": builtin}, "workers": {"replicas": 1}})
    status = job.wait("Finished", 120)
    assert (status["state"], status["reason"], status["restarts"]["total"]) == ("Failed", "Misconfigured", 1)
    assert "/nowhere" in status["lastFailure"]["message"] and "there is no such directory" in status["message"]
    assert status["lastFailure"]["exitCode"] == 2


def test_an_image_without_the_trainer_says_so(trainings: Trainings) -> None:
    # The trainer image under another name, with the Python that sees nothing of ours but the agent's copy.
    image = f"docker.io/{trainings.operator.images['trainer']}"
    path = {"name": "PATH", "value": "/usr/local/bin:/usr/bin:/bin"}
    job = trainings.start(
        "builtin-image", {"trainer": {"image": image, "builtin": {"imageClassification": {}}, "env": [path]}, "workers": {"replicas": 1}}
    )
    status = job.wait("Finished", 120)
    assert (status["state"], status["reason"]) == ("Failed", "Misconfigured"), status.get("message")
    assert "this image cannot run the built-in trainer" in status["lastFailure"]["message"]
