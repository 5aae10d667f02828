"""Reads the manifest that a cluster would be given: the job, checked as the API server would, and the ConfigMaps of the same file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lepton_operator.constants import KIND
from lepton_operator.local.validation import ManifestError, validate

Json = dict[str, Any]
UNSUPPORTED = "not available without a cluster"


@dataclass(frozen=True, slots=True)
class Manifest:
    job: Json  # with the CRD's defaults
    config_maps: dict[str, dict[str, str]]  # name -> data
    directory: Path  # where the file lies: the default working directory of the workers


def read_manifest(path: Path) -> Manifest:
    """Raises `ManifestError`: no such file, not YAML, no job or more than one, or what the CRD refuses."""
    try:
        documents = [doc for doc in yaml.safe_load_all(path.read_text("utf-8")) if doc]
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path} is not YAML: {error}") from None
    if any(not isinstance(doc, dict) for doc in documents):
        raise ManifestError(f"{path}: every document must be an object with apiVersion and kind")
    jobs = [doc for doc in documents if doc.get("kind") == KIND]
    if len(jobs) != 1:
        raise ManifestError(f"{path} has {len(jobs)} documents of kind {KIND}: local mode runs exactly one")
    job = validate(jobs[0])
    job["metadata"].setdefault("namespace", "default")
    maps = {
        str(doc.get("metadata", {}).get("name", "")): {str(k): str(v) for k, v in (doc.get("data") or {}).items()}
        for doc in documents
        if doc.get("kind") == "ConfigMap"
    }
    return Manifest(job, maps, path.resolve().parent)


def environment(job_env: list[Json], env_from: list[Json], maps: dict[str, dict[str, str]]) -> dict[str, str]:
    """The user's variables, ConfigMaps of the same file resolved. Raises `ManifestError` for what only a cluster has."""
    values: dict[str, str] = {}
    for source in env_from:
        reference = source.get("configMapRef")
        if reference is None:
            raise ManifestError(f"spec.trainer.envFrom: {', '.join(source)} is {UNSUPPORTED}")
        values |= _config_map(maps, str(reference.get("name", "")), bool(reference.get("optional")), "spec.trainer.envFrom")
    for entry in job_env:
        name = str(entry["name"])
        if "valueFrom" not in entry:
            values[name] = str(entry.get("value", ""))
            continue
        reference = entry["valueFrom"].get("configMapKeyRef")
        if reference is None:
            raise ManifestError(f"spec.trainer.env: {name}: {', '.join(entry['valueFrom'])} is {UNSUPPORTED}; write a value")
        data = _config_map(maps, str(reference.get("name", "")), bool(reference.get("optional")), f"spec.trainer.env: {name}")
        if str(reference["key"]) in data:
            values[name] = data[str(reference["key"])]
    return values


def _config_map(maps: dict[str, dict[str, str]], name: str, optional: bool, where: str) -> dict[str, str]:
    if name not in maps and not optional:
        raise ManifestError(f"{where}: ConfigMap {name!r} is not in the manifest's file: add it as a document of its own")
    return maps.get(name, {})
