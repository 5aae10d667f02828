"""The built-in trainer in local mode: the examples as they are but for their length, from the manifest to a trained model."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from checkout import CHECKOUT
from local.lepton_run import LocalJob, local_job


def example(name: str, task: str, **training: Any) -> list[dict[str, Any]]:
    """The claim and the job of an example, shortened."""
    text = (CHECKOUT / "examples" / name).read_text()
    assert text.count("\n") <= 22
    documents = list(yaml.safe_load_all(text))
    documents[-1]["spec"]["trainer"]["builtin"][task]["training"] |= training
    return documents


def claim(job: LocalJob) -> Path:
    (folder,) = (job.run_dir / "claims").glob("*/*/round-0")
    return folder


def test_the_digits_are_learnt_from_a_manifest_of_a_few_lines_and_a_killed_worker_costs_nothing(tmp_path: Path) -> None:
    *others, body = example("digits-builtin.yaml", "imageClassification", epochs=4)
    body["spec"]["trainer"]["builtin"]["imageClassification"] |= {"checkpoint": {"everySteps": 20}, "output": {"ledger": True}}
    with local_job(tmp_path / "home", body, *others) as job:
        job.start()
        job.until_status(lambda status: status.progress is not None and (status.progress.step or 0) >= 30, "step 30", 60)
        job.lepton("kill", job.name, "--worker", "1")
        assert job.ended(60) == 0, job.output
        status = job.status
        assert status.state == "Complete" and status.progress is not None
        assert status.progress.step == status.progress.total_steps == status.checkpoint.step == -(-4 * 1348 // 32)
        result = json.loads((claim(job) / "result.json").read_text())
        assert result["finished"] and result["accuracy"] >= 0.9
        assert (claim(job) / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert list((claim(job).parent / "cache" / "data").glob("*/facts.json")), "prepared beside the checkpoints, once for all workers"
        assert job.left_behind() == []


def test_a_model_that_is_not_good_enough_is_trained_on_until_it_is(tmp_path: Path) -> None:
    *others, body = example("retrain-until-good.yaml", "imageClassification", steps=8)
    body["spec"]["evaluation"] |= {"target": 0.85, "onMiss": [{"epochs": 25, "warmStart": True}]}
    with local_job(tmp_path / "home", body, *others) as job:
        job.start()
        assert job.ended(120) == 0, job.output
        seen = job.status.evaluation
        assert seen is not None and seen.met and [entry.steps for entry in seen.rounds] == [8, 200]
        assert float(seen.rounds[0].value) < 0.85 <= float(seen.rounds[1].value)
        assert seen.rounds[1].changes == "epochs x25, warm start from round 1" and seen.best is not None
        assert (Path(seen.best.path) / "model.json").is_file() and Path(seen.best.path).parent.name == "round-2"
        assert f"to serve the model: lepton serve {seen.best.path} --port 8080" in job.output
        assert job.left_behind() == []


def test_a_damaged_checkpoint_is_an_event_and_the_one_before_it_is_used(tmp_path: Path) -> None:
    *others, body = example("digits-builtin.yaml", "imageClassification", epochs=2)
    body["spec"]["workers"] = {"replicas": 1}
    with local_job(tmp_path / "home", body, *others) as job:
        job.start()
        assert job.ended(60) == 0, job.output
        file = max(claim(job).glob("gen-1/step-*/*.distcp"))
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        body["spec"]["trainer"]["builtin"]["imageClassification"]["training"]["epochs"] = 3
        job.write(*others, body)
        job.start()
        assert job.ended(60) == 0, job.output
        told = "\n".join(job.events)
        assert "CheckpointDamaged" in told and "has changed since it was written" in told
        assert "from the checkpoint of step 43" in told, told
        assert job.status.progress is not None and job.status.progress.step == 127


def test_text_is_learnt_from_a_manifest_of_a_few_lines(tmp_path: Path) -> None:
    *others, body = example("language-model.yaml", "languageModeling", steps=12)
    body["spec"]["trainer"]["builtin"]["languageModeling"]["data"] = {"maxBytes": 600_000, "vocabulary": 512, "testFraction": 0.2}
    with local_job(tmp_path / "home", body, *others) as job:
        job.start()
        assert job.ended(60) == 0, job.output
        assert 0 < json.loads((claim(job) / "result.json").read_text())["bits_per_byte"] < 8


def test_without_a_claim_it_trains_and_says_that_nothing_is_kept(tmp_path: Path) -> None:
    _, body = example("digits-builtin.yaml", "imageClassification", epochs=1)
    del body["spec"]["checkpoint"]
    with local_job(tmp_path / "home", body) as job:
        job.variables = {"TMPDIR": str(tmp_path / "tmp")}
        (tmp_path / "tmp").mkdir()
        job.start()
        assert job.ended(60) == 0, job.output
        assert "NoCheckpoints: the job names no claim" in job.output
        assert not list(job.run_dir.rglob("step-*")) and not list((tmp_path / "tmp").rglob("step-*"))
        assert [json.loads(file.read_text())["finished"] for file in (tmp_path / "tmp").glob("lepton-*-output/result.json")] == [True]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"source": "folder", "path": "/nowhere"}, "there is no such directory"),
        ({"source": "mnist", "path": "/nowhere"}, "/nowhere"),
    ],
)
def test_data_that_is_missing_fails_the_job_with_the_place(tmp_path: Path, data: dict[str, Any], said: str) -> None:
    *others, body = example("digits-builtin.yaml", "imageClassification", epochs=1)
    body["spec"]["trainer"]["builtin"]["imageClassification"]["data"] = data
    with local_job(tmp_path / "home", body, *others) as job:
        job.start()
        assert job.ended(60) == 1
        failure = job.status.last_failure
        assert failure is not None and failure.exit_code == 2 and said in failure.message, failure
        assert (job.status.reason, job.status.restarts.total) == ("Misconfigured", 1), "a restart would meet the same"
