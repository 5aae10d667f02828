"""docs/troubleshooting.md explains every reason that the code can give, and none that it cannot.

Every CamelCase word that is written in the operator's source is looked at: it is a reason, or it is named below as something else. So a new
reason without a row fails here, wherever it is written.
"""

import ast
import re

from checkout import CHECKOUT, tracked

DOCUMENT = CHECKOUT / "docs" / "troubleshooting.md"
WORD = re.compile(r"(?:[A-Z]+[a-z]+)+")
CONDITIONS_AND_STATES = {
    *("Accepted", "PodsReady", "Running", "Progressing", "Checkpointing", "ServingReady", "Complete", "Failed", "Finished"),
    *("Pending", "Starting", "Recovering"),
}
ALSO_REASONS = {"Accepted", "Running", "Starting"}
KUBERNETES = {
    *("LeptonTrainingJob", "Pod", "Service", "ConfigMap", "Event", "Lease", "EndpointSlice", "TokenReview", "DeleteOptions", "List"),
    *("Deployment", "RollingUpdate", "ReplicaFailure"),
    *("Normal", "Warning", "Always", "Never", "IfNotPresent", "Exists", "NoExecute", "Memory", "OnRootMismatch", "RuntimeDefault", "None"),
    *("Succeeded", "Ready", "PodScheduled", "DisruptionTarget", "ContainerCreating", "PodInitializing", "True", "False", "AlreadyExists"),
    *("Accept", "Bearer", "BearerToken", "Strict"),
}
TOLD_BY_THE_POD = {"FailedScheduling", "BackOff", "Failed", "Unhealthy", "Preempted"}
"""Reasons of the kubelet's events that are never passed on, because the pod's status says it better."""
OTHER = {"Adopted", "Disrupted", "Strict", "Error", "ErrImagePull", "Reconcile", "CSafeLoader", "Inf"}
"""Of the operator's memory; inside a message only; in a request; passed on under another name; an event's action; no words at all."""
PASSED_ON = {
    *("ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError", "RunContainerError"),
    *("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "SchedulingGated"),
}
"""The cluster's own reasons, which no line of ours spells out: pods/projection.py and pods/diagnosis.py hand on what they find."""


def _names_of_types(tree: ast.AST) -> set[int]:
    """The nodes of strings that name a type: forward references, `__all__`, and the first argument of `NewType`."""
    fields: list[ast.AST] = []
    for node in ast.walk(tree):
        fields += [field for field in (getattr(node, "annotation", None), getattr(node, "returns", None)) if isinstance(field, ast.AST)]
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            fields.append(node.value)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "NewType":
            fields.append(node.args[0])
    return {id(part) for field in fields for part in ast.walk(field)}


def written() -> set[str]:
    """Every CamelCase string of the operator's source."""
    found = set()
    for path in tracked(".py"):
        if path.parts[0] != "operator":
            continue
        tree = ast.parse((CHECKOUT / path).read_text())
        skip = _names_of_types(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and WORD.fullmatch(node.value) and id(node) not in skip:
                found.add(node.value)
    return found


def explained() -> list[str]:
    """The words of the first column of every table."""
    cells = [line.split("|")[1] for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    return [word for cell in cells for word in re.findall(r"`(\w+)`", cell)]


def test_every_reason_of_the_code_has_a_row() -> None:
    no_reasons = (CONDITIONS_AND_STATES - ALSO_REASONS) | KUBERNETES | TOLD_BY_THE_POD | OTHER
    missing = written() - no_reasons - set(explained())
    assert not missing, "give each a row in docs/troubleshooting.md, or name it in this test as no reason"


def test_every_row_has_a_reason_in_the_code() -> None:
    assert not set(explained()) - written() - PASSED_ON


def test_no_reason_is_explained_twice() -> None:
    words = explained()
    assert sorted(set(words)) == sorted(words)


def test_what_is_named_as_no_reason_still_exists() -> None:
    assert not (KUBERNETES | TOLD_BY_THE_POD | OTHER) - written()
