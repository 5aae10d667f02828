"""Checks a manifest on a machine without a cluster as the API server would: the CRD's schema and CEL rules, the same paths and messages.

What only a cluster knows is not checked here, and `NOT_CHECKED` says so. One difference is left on purpose: an update of a job that was
stored under an older, laxer CRD is judged whole, where the API server lets its unchanged parts pass.
"""

from dataclasses import dataclass
from typing import Any

from lepton_operator.local.crd import crd, job_schema
from lepton_operator.local.rules import broken_rules
from lepton_operator.local.schema import Problem, duplicates, faults, unknown_fields, with_defaults

NOT_CHECKED = (
    "not checked without a cluster: admission policies, quotas, and the fields of workers.template (kubectl apply --dry-run=server does)"
)
UNCHECKED_RULES = Problem(
    "",
    "Invalid value",
    "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
    shows_value=True,
)


class ManifestError(ValueError):
    """The manifest is refused; `str()` is what kubectl would print, `problems` are its parts."""

    def __init__(self, message: str, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


@dataclass(frozen=True, slots=True)
class _Names:
    kind: str
    api_version: str


def validate(manifest: dict[str, Any], old: dict[str, Any] | None = None) -> dict[str, Any]:
    """The job as the API server would store it, defaults included. `old` is the stored job that this one replaces.

    Raises `ManifestError` with all that is wrong.
    """
    names = _names()
    schema = job_schema()
    if manifest.get("kind") != names.kind or manifest.get("apiVersion") != names.api_version:
        raise ManifestError(
            f'no matches for kind "{manifest.get("kind", "")}" in version "{manifest.get("apiVersion", "")}": '
            f"write apiVersion: {names.api_version} and kind: {names.kind}"
        )
    unknown = list(unknown_fields(manifest, schema))
    if unknown:
        raise ManifestError("strict decoding error: " + ", ".join(f'unknown field "{path}"' for path in unknown))
    job: dict[str, Any] = with_defaults(manifest, schema)
    metadata = job.get("metadata")
    name = metadata.get("name") or metadata.get("generateName") if isinstance(metadata, dict) else None
    if not name:
        raise ManifestError("metadata.name: Required value: name or generateName is required")
    problems = [*faults(job, schema), *duplicates(job, schema)]
    if any(problem.blocks_rules for problem in problems):
        problems.append(UNCHECKED_RULES)
    else:
        problems += broken_rules(job, with_defaults(old, schema) if old is not None else None, schema)
    if problems:
        raise ManifestError(_told(names.kind, str(name), problems), tuple(problems))
    return job


def _names() -> _Names:
    spec = crd()["spec"]
    version = next(version["name"] for version in spec["versions"] if version["storage"])
    return _Names(spec["names"]["kind"], f"{spec['group']}/{version}")


def _told(kind: str, name: str, problems: list[Problem]) -> str:
    if len(problems) == 1:
        return f'The {kind} "{name}" is invalid: {problems[0]}'
    return f'The {kind} "{name}" is invalid:\n' + "\n".join(f"* {problem}" for problem in problems)
