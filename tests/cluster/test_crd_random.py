"""Manifests damaged at random are judged alike by the API server and by local mode, defaults included."""

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from kube import Kubectl
from lepton_operator.local.crd import FILE, job_schema
from lepton_operator.local.validation import ManifestError, validate
from wrong_manifests import RIGHT, job

ROUNDS = 400
SEED = 20261125
KIND = {"group": "training.lepton.ai", "version": "v1alpha1", "plural": "leptontrainingjobs"}
CRD = Path(__file__).parents[2] / "crds" / FILE
# The API server reads the field of the scale subresource once more and complains in Go's words, where it has said it better before.
ECHO = ".spec.workers.replicas"
VALUES: tuple[Any, ...] = (
    *(None, 0, -1, 1, 3, 2.5, True, False, [], {}, ["x"], [1], [None], {"name": "x"}, {"foo": 1}),
    *("", "x", "auto", "16Gi", "A B", "1h", "90", "/abs", "a/../b", "RANK", "LEPTON_X", "(a)", "[", "ü" * 40, "a" * 300),
    [{"name": "a", "value": "b"}, {"name": "a"}],
    {"limits": {"cpu": -1, "memory": "1x"}},
)
Path_ = tuple[str | int, ...]
Verdict = dict[str, Any] | list[tuple[str, str]]


def paths(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths(item, (*path, key))


def names_at(path: Path_) -> list[str]:
    """The fields that the schema has there, and one that it has not."""
    schema: dict[str, Any] = job_schema()
    for key in path:
        schema = schema.get("properties", {}).get(key, {}) if isinstance(key, str) else schema.get("items", {})
    return [*schema.get("properties", {}), "foo"]


def damaged(manifest: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    manifest = deepcopy(manifest)
    for _ in range(chance.randint(1, 3)):
        path = chance.choice(list(paths(manifest["spec"], ("spec",))))
        parent: Any = manifest
        for key in path[:-1]:
            parent = parent[key]
        target, deed = parent[path[-1]], chance.random()
        if deed < 0.5:
            parent[path[-1]] = deepcopy(chance.choice(VALUES))
        elif deed < 0.65 and len(path) > 1:
            del parent[path[-1]]
        elif isinstance(target, dict):
            target[chance.choice(names_at(path))] = deepcopy(chance.choice(VALUES))
        elif isinstance(target, list):
            target.append(deepcopy(chance.choice(VALUES)))
    return manifest


def strict(message: str) -> list[tuple[str, str]]:
    return sorted(("", part) for part in message.partition("strict decoding error: ")[2].split(", "))


def plain(faults: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Sorted, and without the words of the regular expression library."""
    return sorted((path, words.partition("evaluating rule")[2] or words) for path, words in faults if path != ECHO)


def of_the_server(custom: client.CustomObjectsApi, namespace: str, manifest: dict[str, Any]) -> Verdict:
    try:
        stored = custom.create_namespaced_custom_object(
            **KIND, namespace=namespace, body=manifest, dry_run="All", field_validation="Strict"
        )
        return dict(stored["spec"])
    except ApiException as error:
        status = json.loads(error.body)
        causes = [(cause["field"], cause["message"]) for cause in status.get("details", {}).get("causes", ())]
        return plain(causes) if causes else strict(status["message"])


def of_local_mode(manifest: dict[str, Any]) -> Verdict:
    try:
        return dict(validate(manifest)["spec"])
    except ManifestError as error:
        lines = [(problem.path or "<nil>", str(problem)) for problem in error.problems]
        return plain([(path, line.removeprefix(f"{path}: ")) for path, line in lines]) if lines else strict(str(error))


def test_manifests_damaged_at_random_are_judged_alike(kubeconfig: Path, kubectl: Kubectl, namespace: str) -> None:
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    custom = client.CustomObjectsApi(config.new_client_from_config(str(kubeconfig)))
    chance = random.Random(SEED)
    refused = 0
    for _ in range(ROUNDS):
        manifest = damaged(job(chance.choice(list(RIGHT.values()))), chance)
        verdict = of_local_mode(manifest)
        assert verdict == of_the_server(custom, namespace, manifest), json.dumps(manifest["spec"])
        refused += isinstance(verdict, list)
    assert ROUNDS // 4 < refused < ROUNDS
