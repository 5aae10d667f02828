"""The parts that run inside any user's image keep to Python 3.9: judged by a library, and by a 3.9 interpreter where there is one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lepton_trainer.agent.install import install
from lepton_trainer.protocol import messages as m
from local.agent.coordinator_double import SOURCE, agents, coordinator

PARTS = [SOURCE / "lepton_trainer" / name for name in ("__init__.py", "__main__.py", "report.py", "protocol", "agent")]


def python39() -> str | None:
    root = os.environ.get("PYENV_ROOT") or str(Path.home() / ".pyenv")
    found = sorted(Path(root).glob("versions/3.9.*/bin/python"))
    return str(found[-1]) if found else shutil.which("python3.9")


def test_no_newer_syntax_or_module_is_used() -> None:
    print("checked statically, by vermin")
    vermin = Path(sys.executable).with_name("vermin")
    command = [str(vermin), "--no-tips", "--violations", "-t=3.9-", "--no-parse-comments", "--eval-annotations", *map(str, PARTS)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


async def test_an_agent_runs_a_generation_on_python_39(tmp_path: Path) -> None:
    python = python39()
    if python is None:
        print("no Python 3.9 here: checked statically only")
        pytest.skip("no Python 3.9 interpreter was found")
    print(f"run on {python}")
    (tmp_path / "copied").mkdir()
    install(str(tmp_path / "copied"))
    assert sorted(p.name for p in (tmp_path / "copied" / "lepton_trainer").iterdir() if p.name != "__pycache__") == [
        "__init__.py",
        "__main__.py",
        "agent",
        "protocol",
        "report.py",
    ]
    (tmp_path / "train.py").write_text(
        "import sys\nfrom lepton_trainer.report import report, should_stop\n"
        "for step in range(3):\n    report(step=step, loss=0.5, samples=1)\nprint(sys.version_info[:2], should_stop())\n"
    )
    folder = str(tmp_path / "copied" / "lepton_trainer" / "agent")
    async with coordinator() as it, agents(tmp_path, it, [python, "train.py"], AGENT=f"{python} {folder}", PYTHONPATH="") as (agent,):
        await it.form(1, [0])
        await it.until_phase(m.SUCCEEDED, 0)
        await it.until(lambda: it.peers[0].progress.step == 2)
        assert "[rank 0] (3, 9) False" in agent.output()
        it.order(0, generation=1, shutdown=m.COMPLETE)
        assert await agent.ended() == 0
