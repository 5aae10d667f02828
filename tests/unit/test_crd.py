"""The CRD as a document: small, described, bounded, and without a rule that no manifest shows to be needed."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

import wrong_manifests
from lepton_operator import status
from lepton_operator.local.crd import crd, crd_text, job_schema
from lepton_operator.local.rules import RULES, broken_rules
from lepton_operator.local.schema import with_defaults
from lepton_trainer.protocol import names, patterns

Schema = dict[str, Any]


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from nodes(part, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


def rules() -> list[tuple[str, int]]:
    return [(path, index) for path, node in nodes(job_schema()) for index in range(len(node.get(RULES, ())))]


def without(path: str, index: int) -> Schema:
    schema = deepcopy(job_schema())
    del dict(nodes(schema))[path][RULES][index]
    return schema


def broken(wrong: wrong_manifests.Wrong, schema: Schema) -> list[str]:
    old = None if wrong.before is None else with_defaults(wrong_manifests.job(wrong.before, wrong.name), schema)
    return [str(problem) for problem in broken_rules(with_defaults(wrong.manifest, schema), old, schema)]


def test_the_crd_is_smaller_than_100_kb() -> None:
    assert len(crd_text().encode()) < 100_000


def test_every_field_has_a_description() -> None:
    fields = [path for path, node in nodes(job_schema()) if not path.endswith(("[]", "{}")) and "description" not in node]
    assert fields == [".metadata"]  # the API server describes that one itself


def test_every_list_string_and_map_of_the_spec_has_a_limit() -> None:
    spec = job_schema()["properties"]["spec"]
    assert [path for path, node in nodes(spec) if node.get("type") == "array" and "maxItems" not in node] == []
    assert [path for path, node in nodes(spec) if node.get("type") == "string" and not {"maxLength", "enum"} & node.keys()] == []
    assert [path for path, node in nodes(spec) if "additionalProperties" in node and "maxProperties" not in node] == []


def test_the_names_reserved_in_env_are_those_of_the_protocol() -> None:
    rule = job_schema()["properties"]["spec"]["properties"]["trainer"]["properties"]["env"]["items"][RULES][1]["rule"]
    for name in names.TORCHRUN:
        assert f"'{name}'" in rule or name.startswith("TORCHELASTIC_"), name
    assert f"'{names.WARM_START}'" in rule
    assert f"'{names.PRELOAD}'" in rule


def test_the_numbers_to_be_found_in_logs_are_those_of_the_protocol() -> None:
    entry = job_schema()["properties"]["spec"]["properties"]["metrics"]["properties"]["fromLogs"]["items"]
    assert entry["properties"]["name"]["enum"] == list(patterns.NAMES)
    assert entry["properties"]["pattern"]["maxLength"] <= patterns.PATTERN_LIMIT


@pytest.mark.parametrize(("path", "index"), rules(), ids=lambda part: str(part))
def test_every_rule_is_needed_by_a_wrong_manifest(path: str, index: int) -> None:
    whole, less = job_schema(), without(path, index)
    assert any(broken(wrong, whole) != broken(wrong, less) for wrong in wrong_manifests.WRONG if fit_for_rules(wrong))


def fit_for_rules(wrong: wrong_manifests.Wrong) -> bool:
    """Rules are written for values of the right type; the schema keeps others from them."""
    return not any(word in wrong.message for word in ("must be of type", "Required value", "unknown field"))


def test_every_rule_has_a_message_and_a_path_that_exists() -> None:
    for path, node in nodes(job_schema()):
        for rule in node.get(RULES, ()):
            assert rule["message"], path
            target = node
            for part in rule.get("fieldPath", "").split(".")[1:]:
                target = target["properties"][part]


def test_scaling_finds_its_field_in_the_smallest_job() -> None:
    version = crd()["spec"]["versions"][0]
    assert version["subresources"]["scale"] == {
        "specReplicasPath": ".spec.workers.replicas",
        "statusReplicasPath": ".status.workers.active",
        "labelSelectorPath": ".status.selector",
    }
    assert with_defaults(wrong_manifests.job(), job_schema())["spec"]["workers"]["replicas"] == 1


def test_every_column_reads_a_field_that_exists() -> None:
    columns = crd()["spec"]["versions"][0]["additionalPrinterColumns"]
    assert [column["name"].upper() for column in columns] == [
        *("STATE", "WORKERS", "STEP", "PROGRESS", "LOSS", "ROUND", "METRIC", "THROUGHPUT", "ETA", "RESTARTS", "AGE", "REASON", "GOODPUT"),
    ]
    paths = {path for path, _ in nodes(job_schema())}
    assert {column["jsonPath"] for column in columns} - paths == {".metadata.creationTimestamp"}


def shape(hint: Any) -> str:
    """The schema type in which `status` writes a value of this type."""
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    if hint in (status.Time, status.MicroTime):
        return "string"
    if hint is status.Exact:
        return "number"
    if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is dict:
        return "object"
    return {int: "integer", float: "number", str: "string", bool: "boolean", tuple: "array"}[typing.get_origin(hint) or hint]


def written(kind: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, schema type) of everything that the operator writes into the status."""
    for name, hint in typing.get_type_hints(kind).items():
        if isinstance(hint, types.UnionType):
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        head, *rest = name.split("_")
        where = f"{path}.{head}{''.join(part.capitalize() for part in rest)}"
        yield where, shape(hint)
        if dataclasses.is_dataclass(hint):
            yield from written(hint, where)
        elif typing.get_origin(hint) is tuple and dataclasses.is_dataclass(typing.get_args(hint)[0]):
            yield from written(typing.get_args(hint)[0], f"{where}[]")


def test_the_status_of_the_crd_is_the_status_that_the_operator_writes() -> None:
    """The API server drops a field that the schema lacks without a word."""
    described = {path: node.get("type", "") for path, node in nodes(job_schema()["properties"]["status"]) if path}
    described = {path: kind for path, kind in described.items() if not path.endswith(("[]", "{}"))}
    expected = dict(written(status.Status))
    expected[".conditions[].status"] = "string"
    del expected[".conditions[].lastTransition"]  # `status` writes it as metav1 has it
    assert described == expected | {".conditions[].lastTransitionTime": "string"}
