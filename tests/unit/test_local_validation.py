"""Local mode refuses what the API server refuses, in its words; the table is shared with `tests/cluster/test_crd.py`."""

import pytest

from lepton_operator.local.validation import ManifestError, validate
from wrong_manifests import RIGHT, RIGHT_UPDATES, WRONG, Wrong, job


def refusal(wrong: Wrong) -> ManifestError:
    old = None if wrong.before is None else validate(job(wrong.before, wrong.name))
    with pytest.raises(ManifestError) as refused:
        validate(wrong.manifest, old)
    return refused.value


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.case)
def test_a_wrong_manifest_is_refused_with_path_and_message(wrong: Wrong) -> None:
    error = refusal(wrong)
    if wrong.path:
        lines = [str(problem) for problem in error.problems]
        assert any(line.startswith(f"{wrong.path}: ") and wrong.message in line for line in lines), str(error)
    else:
        assert wrong.message in str(error)


def test_the_table_holds_at_least_forty_manifests_under_names_of_their_own() -> None:
    assert len({wrong.case for wrong in WRONG}) == len(WRONG) >= 40


@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT.keys())
def test_a_right_manifest_is_accepted(change: str) -> None:
    accepted = validate(job(change))
    assert validate(accepted, accepted) == accepted


@pytest.mark.parametrize("update", RIGHT_UPDATES.values(), ids=RIGHT_UPDATES.keys())
def test_a_right_update_is_accepted(update: tuple[str, str]) -> None:
    before, after = update
    assert validate(job(after), validate(job(before))) == validate(job(after)), "what is stored is the new one, with its defaults"


def test_defaults_are_filled_in_without_touching_what_was_given() -> None:
    given = job("{workers: {replicas: 3}}")
    stored = validate(given)
    assert stored["spec"]["workers"] == {"replicas": 3, "procsPerWorker": "auto"}
    assert stored["spec"]["recovery"] == {"maxRestarts": 10, "window": "1h"}
    assert stored["spec"]["intraJobCommunication"] is False
    assert given == job("{workers: {replicas: 3}}")


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ManifestError) as refused:
        validate(job("{trainer: {workingDir: a}, recovery: {window: x}, workers: {procsPerWorker: 0}}"))
    assert [problem.path for problem in refused.value.problems] == [
        "spec.trainer.workingDir",
        "spec.recovery.window",
        "spec.workers.procsPerWorker",
    ]
    assert str(refused.value).startswith(
        'The LeptonTrainingJob "right" is invalid:\n* spec.trainer.workingDir: Invalid value: "a": workingDir must'
    )


def test_rules_are_not_evaluated_on_values_of_the_wrong_type_and_that_is_said() -> None:
    with pytest.raises(ManifestError, match="some validation rules were not checked"):
        validate(job("{workers: {replicas: many, procsPerWorker: 0}}"))


def test_another_kind_is_refused_with_what_to_write() -> None:
    with pytest.raises(ManifestError, match=r"write apiVersion: training.lepton.ai/v1alpha1 and kind: LeptonTrainingJob"):
        validate({**job(), "apiVersion": "training.lepton.ai/v1"})


def test_a_mistyped_metadata_field_is_reported() -> None:
    with pytest.raises(ManifestError, match=r'unknown field "metadata.label"'):
        validate({**job(), "metadata": {"name": "a", "label": {}}})


def test_a_job_without_a_name_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"metadata.name: Required value"):
        validate({**job(), "metadata": {}})
