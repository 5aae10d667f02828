"""A variable that is wrong ends the agent with a sentence that names it."""

from pathlib import Path

import pytest

from lepton_trainer.agent.settings import SettingsError, read
from lepton_trainer.protocol import names

ENOUGH = {
    names.JOB_NAME: "digits",
    names.WORKER_INDEX: "0",
    names.WORKER_UID: "uid",
    names.COORDINATOR: "tcp://127.0.0.1:1",
}


def test_a_run_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=f"{names.RUN_DIR} is .*file/run"):
        read({**ENOUGH, names.RUN_DIR: str(tmp_path / "file" / "run")}, ["true"])


@pytest.mark.parametrize("procs", ["0", "0.5"])
def test_a_worker_has_at_least_one_process(tmp_path: Path, procs: str) -> None:
    with pytest.raises(SettingsError, match=f"{names.PROCS} is {procs}"):
        read({**ENOUGH, names.RUN_DIR: str(tmp_path), names.PROCS: procs}, ["true"])
