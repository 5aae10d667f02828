"""The house keeps its shape: rooms where docs/architecture.md has them, small files that say why they exist, nothing of one machine.

That `agent`, `protocol` and `report` keep to Python 3.9 is tested in tests/local/agent/test_python39.py.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

from checkout import CHECKOUT, tracked

TOP = {"bench", "charts", "cluster", "crds", "demo", "docs", "examples", "operator", "requirements", "tests", "trainer_image"}
SOURCE_ROOTS = ("operator", "trainer_image")
LINES = 450
NO_PURPOSE_SAID = ("tests/builders/", "tests/local/scripts/", "tests/cluster/jobs/scripts/", "bench/scripts/")
REGISTRIES = [
    (name, end)
    for name, end in (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("crates", "io"), (".".join(("proxy", "golang")), "org"))
]
MACHINE_PATHS = [("", "work", ""), ("", "root", ""), ("", "home", "user", "")]
MODULES = [path for path in tracked(".py")]


def test_the_top_level_folders_are_those_of_the_design() -> None:
    assert {path.parts[0] for path in tracked() if len(path.parts) > 1 and not path.parts[0].startswith(".")} == TOP


def test_source_roots_are_no_packages_and_hold_one_each() -> None:
    for root in SOURCE_ROOTS:
        inside = {path.parts[1] for path in MODULES if path.parts[0] == root}
        assert inside == {{"operator": "lepton_operator", "trainer_image": "lepton_trainer"}[root]}, root
        assert not (CHECKOUT / root / "__init__.py").exists(), f"{root}/__init__.py would make {root} a package"


def test_nothing_on_the_search_path_shadows_the_standard_library() -> None:
    """Pytest and the benches put these folders on the path; a package of the checkout itself must carry no standard name either."""
    packages = {path.parts[0] for path in MODULES if path.name == "__init__.py" and len(path.parts) == 2}
    roots = ("tests", "bench", *SOURCE_ROOTS)
    on_path = {path.parts[1].removesuffix(".py") for path in MODULES if path.parts[0] in roots and len(path.parts) >= 2}
    assert not (packages | on_path) & set(sys.stdlib_module_names)


def test_the_trainer_package_imports_nothing_by_itself() -> None:
    """A user's script imports `lepton_trainer.report` in any image: the package's own module must cost and need nothing."""
    assert (CHECKOUT / "trainer_image" / "lepton_trainer" / "__init__.py").read_text() == ""


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_says_its_purpose_and_stays_small(path: Path) -> None:
    text = (CHECKOUT / path).read_text()
    assert text.count("\n") <= LINES, f"{path}: look for the second room"
    if text.strip() and path.name != "conftest.py" and not str(path).startswith(NO_PURPOSE_SAID):
        assert ast.get_docstring(ast.parse(text)), f"{path}: its first lines must say why it exists"


@pytest.mark.parametrize("name", ["utils", "util", "helpers", "helper", "common", "misc"])
def test_no_file_is_named_after_nothing(name: str) -> None:
    assert not [path for path in MODULES if name in path.with_suffix("").parts]


def test_no_package_registry_and_no_path_of_one_machine_is_named() -> None:
    hosts = [re.escape(f"{name}.{end}") for name, end in REGISTRIES]
    paths = [re.escape("/".join(parts)) for parts in MACHINE_PATHS]
    forbidden = re.compile(rf"\b(?:{'|'.join(hosts)})\b|(?<![\w.])(?:{'|'.join(paths)})")
    found = []
    for path in tracked():
        try:
            text = (CHECKOUT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path}: {match.group()}" for match in forbidden.finditer(text)]
    assert not found
