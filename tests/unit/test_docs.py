"""What the documentation tells a reader to type, apply or open: run here, or named with the test that runs it; files and links exist."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from checkout import CHECKOUT, tracked
from lepton_operator import cli
from lepton_operator.local.crd import job_schema
from lepton_operator.local.manifest import read_manifest
from lepton_operator.local.validation import validate
from lepton_trainer.train import config

PAGES = [path for path in tracked(".md") if path.parts[0] == "docs" or len(path.parts) == 1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"sh", "yaml", "text", "console", "python"}
table = runpy.run_path(str(CHECKOUT / "bench" / "readme_table.py"))

EXECUTED = {"lepton --help"}
DEMO = "tests/local/test_demo.py::test_digits_lose_worker_0_in_the_middle_and_are_learnt_all_the_same"
LOCAL = "tests/local/test_run.py::test_commands_show_and_change_a_running_job"
DIGITS = "tests/cluster/jobs/test_happy_path.py::test_digits_is_trained_and_shown"
DESCRIBED = "tests/unit/trainer/test_config.py::test_the_commands_describe_the_tasks"
TRAINED = "tests/unit/trainer/test_loop.py::test_digits_are_learnt_and_everything_is_written_down"
TWO_RANKS = "tests/unit/trainer/test_loop.py::test_a_sigterm_to_one_rank_stops_all_at_one_step_with_a_checkpoint_and_the_bits_are_kept"
SERVED = "tests/unit/trainer/test_serving.py"
CURL = """curl -s localhost:8080/predict -H 'Content-Type: application/json' -d '{"instances": [{"image": "'$(base64 -w0 seven.png)'"}]}'"""
HELM_INSTALL = (
    "helm install lepton charts/lepton-operator --namespace lepton-system --create-namespace --set image.registry=registry.example.com/team"
)
TESTED = {
    "lepton get digits": LOCAL,
    "lepton kill digits --worker 0": LOCAL,
    "lepton scale digits --replicas 3": LOCAL,
    "lepton describe digits": LOCAL,
    "lepton run examples/digits.yaml --local": DEMO,
    "make push REGISTRY=registry.example.com/team": "tests/cluster/test_cluster.py::test_an_image_is_pushed_to_a_registry_over_http",
    HELM_INSTALL: "tests/cluster/test_install.py::test_restricted_pod_security_lets_both_replicas_in",
    "kubectl get ltj -w": DIGITS,
    "kubectl get ltj NAME -o jsonpath='{.status.lastFailure.message}'": (
        "tests/cluster/jobs/test_process_and_pod_faults.py::test_a_process_that_dies_costs_a_generation_and_no_pod"
    ),
    "python -m lepton_trainer train digits.yaml": TRAINED,
    "torchrun --standalone --nproc-per-node 2 -m lepton_trainer train digits.yaml": TWO_RANKS,
    "python -m lepton_trainer serve runs/digits/model": f"{SERVED}::test_the_answers_on_the_held_out_split_are_those_of_the_evaluation",
    CURL: f"{SERVED}::test_a_picture_file_is_answered_like_its_pixels",
    "python -m lepton_trainer tasks": DESCRIBED,
    "python -m lepton_trainer explain imageClassification": DESCRIBED,
    "python -m lepton_trainer schema imageClassification": DESCRIBED,
}
"""The test that runs it, be it with other names or through the function that the program calls."""
RUN_BEFORE_THIS = {"make setup", "source .venv/bin/activate", "make test"}
"""Whoever runs this test has done so, or is doing it."""
TYPED_BY_HAND = {"make demo", "kubectl apply -f examples/digits.yaml"}
"""`make demo` shows to a person what the tests of the cluster assert, and applies the example as it is."""
NOT_THERE = {"operator/__init__.py"}
"""Named because it must never exist."""


def fences(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return FENCE.findall((CHECKOUT / page).read_text())


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, without comments."""
    lines = [line for language, text in fences(page) if language == "sh" for line in text.replace("\\\n", " ").splitlines()]
    return [command for line in lines if (command := re.sub(r"(^|\s+)#.*", "", line).strip())]


def text_of(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", (CHECKOUT / page).read_text())


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_each_block_says_its_language(page: Path) -> None:
    assert {language for language, _ in fences(page)} <= LANGUAGES


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_each_command_is_run_by_a_test(page: Path) -> None:
    known = EXECUTED | TESTED.keys() | RUN_BEFORE_THIS | TYPED_BY_HAND
    assert not [command for command in commands(page) if command not in known], "say in this file which test runs it"


def test_no_command_is_listed_that_no_page_has_and_each_test_named_exists() -> None:
    told = {command for page in PAGES for command in commands(page)}
    assert told >= EXECUTED | TESTED.keys() | RUN_BEFORE_THIS | TYPED_BY_HAND
    for place in TESTED.values():
        file, _, name = place.partition("::")
        assert re.search(rf"^(async )?def {name}\(", (CHECKOUT / file).read_text(), re.MULTILINE), place


@pytest.mark.parametrize("command", sorted(EXECUTED))
def test_a_cheap_command_works_as_written(command: str) -> None:
    program, *arguments = shlex.split(command)
    done = subprocess.run([str(Path(sys.executable).with_name(program)), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: lepton")


def test_every_lepton_command_is_understood_by_the_command_line() -> None:
    told = [command for page in PAGES for command in commands(page)]
    told += [
        line
        for page in PAGES
        for language, text in fences(page)
        if language == "console"
        for line in re.findall(r"\$ (.*?)\s*(?:#|$)", text, re.MULTILINE)
    ]
    parsed = [
        cli._parser().parse_args(shlex.split(command)[1:]) for command in told if command.startswith("lepton ") and "--help" not in command
    ]
    assert len(parsed) >= 5


def test_every_make_target_and_cluster_command_named_exists() -> None:
    makefile = (CHECKOUT / "Makefile").read_text()
    cluster = (CHECKOUT / "cluster" / "__main__.py").read_text()
    for page in PAGES:
        text = (CHECKOUT / page).read_text()
        for target in re.findall(r"(?:`|^)make ([a-z][a-z-]*)", text, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page}: make {target}"
        for name in re.findall(r"python3 -m cluster ([a-z-]+)", text):
            assert f'add_parser("{name}"' in cluster, f"{page}: python3 -m cluster {name}"


def test_helm_values_named_exist() -> None:
    values = yaml.safe_load((CHECKOUT / "charts" / "lepton-operator" / "values.yaml").read_text())
    for page in PAGES:
        for path in re.findall(r"--set ([\w.]+)=", (CHECKOUT / page).read_text()):
            found: Any = values
            for key in path.split("."):
                assert key in found, f"{page}: --set {path}"
                found = found[key]


def test_json_paths_named_are_in_the_schema() -> None:
    for page in PAGES:
        for path in re.findall(r"jsonpath='\{\.([\w.]+)\}'", (CHECKOUT / page).read_text()):
            schema = job_schema()
            for key in path.split("."):
                assert key in schema.get("properties", {}), f"{page}: {path}"
                schema = schema["properties"][key]


def manifests() -> list[Any]:
    """(where, manifest) of every job in a page or an example."""
    found = [(f"{page}", text) for page in PAGES for language, text in fences(page) if language == "yaml"]
    found += [(f"{path}", (CHECKOUT / path).read_text()) for path in tracked(".yaml") if path.parts[0] == "examples"]
    return [
        pytest.param(item, id=where)
        for where, text in found
        for item in yaml.safe_load_all(text)
        if isinstance(item, dict) and item.get("kind") == "LeptonTrainingJob"
    ]


@pytest.mark.parametrize("manifest", manifests())
def test_a_manifest_is_accepted_by_the_schema_and_rules(manifest: dict[str, Any]) -> None:
    validate(manifest)


def test_the_gpu_manifest_of_the_readme_is_short_and_asks_for_eight() -> None:
    (text,) = [text for language, text in fences(Path("README.md")) if language == "yaml" and "nvidia.com/gpu" in text]
    assert text.count("\n") < 20
    workers = validate(yaml.safe_load(text))["spec"]["workers"]
    assert (workers["resources"]["limits"]["nvidia.com/gpu"], workers["procsPerWorker"]) == (8, "auto")


def test_every_example_is_a_job_that_local_mode_reads_or_a_configuration_of_the_trainer() -> None:
    examples = [CHECKOUT / path for path in tracked(".yaml") if path.parts[0] == "examples"]
    jobs = [path for path in examples if "kind: LeptonTrainingJob" in path.read_text()]
    assert jobs
    for path in jobs:
        read_manifest(path)
    for path in set(examples) - set(jobs):
        config.load(path)


def anchors(page: Path) -> set[str]:
    """The headings as GitHub links to them."""
    titles = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (CHECKOUT / page).parent / path if path else CHECKOUT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.resolve().relative_to(CHECKOUT.resolve())), target


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_named_exist(page: Path) -> None:
    """Paths in backticks that begin with a folder of ours, seen from the checkout or from a package; file names alone anywhere."""
    roots = [CHECKOUT, CHECKOUT / "operator" / "lepton_operator", CHECKOUT / "trainer_image" / "lepton_trainer", CHECKOUT / "docs"]
    ours = tracked()
    for name in re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?)`", text_of(page)):
        first, slash, _ = name.partition("/")
        if slash and any((root / first).is_dir() for root in roots):
            assert name in NOT_THERE or any((root / path).exists() for root in roots for path in (name, f"{name}.py")), name
        elif not slash and name.endswith((".py", ".md", ".toml", ".lock")):
            assert any(path.name == name for path in ours), name


def test_the_house_in_the_architecture_is_the_one_that_stands() -> None:
    """Each name in the first column exists, and none of the operator's own rooms is missing."""
    (house,) = [text for language, text in fences(Path("docs/architecture.md")) if language == "text"]
    named: dict[str, set[str]] = {}
    for line in house.splitlines():
        if not line.startswith(" "):
            root = line
        else:
            named.setdefault(root, set()).update(re.split(r" {2,}", line.strip())[0].split())
    for root, names in named.items():
        folder = CHECKOUT / root
        rooms = {f"{path.name}/" for path in folder.iterdir() if any(path.glob("*.py"))} | {path.stem for path in folder.glob("*.py")}
        assert names == rooms - {"__init__"}, root


def test_the_figures_in_the_readme_are_those_of_the_results() -> None:
    text = (CHECKOUT / "README.md").read_text()
    assert table["inserted"](text, table["build"]()) == text, "run: python bench/readme_table.py"


def test_figures_that_were_not_measured_are_said_to_be_missing(tmp_path: Path) -> None:
    block = table["build"](tmp_path)
    assert block.count("not measured yet") >= 8
    assert "**" not in block


def test_tries_of_torchrun_are_told_by_how_they_ended() -> None:
    tries = [{"outcome": "recovered", "stepped": 5.2}, {"outcome": "cut off", "stepped": 60.0}, {"outcome": "lost", "stepped": None}]
    in_pods = [{"stepped": 60.0, "cut_off": True}, {"stepped": 7.0}]
    told = table["torchrun"](tries)
    assert told == "1 of 3 recovered, in 5.20 s; 1 not within 60 s; in 1 every agent gave up"
    assert table["torchrun"](in_pods) == "1 of 2 recovered, in 7.00 s; 1 not within 60 s"


def test_a_measured_figure_is_told_with_its_spread_and_its_busy_machine(tmp_path: Path) -> None:
    about = {
        "time": "2026-01-02T03:04:05Z",
        "cpu": "x",
        "cores": 2,
        "memory_gib": 24,
        "python": "3.11",
        "packages": {},
        "load_before": [5.0, 0, 0],
    }
    summary = {"n": 20, "min": 0.3, "p50": 0.61, "p95": 0.9, "max": 1.0}
    (tmp_path / "recovery-cluster.json").write_text(json.dumps({"about": about, "summary": {"lepton, pod 0 deleted: stepped": summary}}))
    block = table["build"](tmp_path)
    assert "| pods: pod 0 deleted → the survivors step again | **0.61 s** (p95 0.90 s, n 20) | not measured yet | – |" in block
    assert "**the machine was busy: load 5 on 2 cores**" in block
