"""How a job's pod template is laid over the pod that the operator builds. Pure; knows Kubernetes' merge keys, nothing about training.

Objects merge key by key, `null` takes one of our defaults away, lists with a merge key (containers, volumes, env, tolerations) merge by
it. What the operator owns cannot be replaced: the trainer's command and image, our volumes, labels and annotations, `restartPolicy`.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from lepton_operator import constants as c

Json = dict[str, Any]

OWNED_SPEC = frozenset(
    {"restartPolicy", "hostname", "subdomain", "containers", "initContainers", "volumes", "tolerations", "securityContext"}
)
OWNED_TRAINER = frozenset(
    {
        "name",
        "image",
        "command",
        "args",
        "env",
        "resources",
        "terminationMessagePath",
        "terminationMessagePolicy",
        "stdin",
        "tty",
        "restartPolicy",
    }
)
LISTS, TRAINER_LISTS = ("containers", "initContainers", "volumes", "tolerations"), ("env", "envFrom", "volumeMounts", "ports")
OBJECTS, TRAINER_OBJECTS = ("securityContext", "nodeSelector"), ("securityContext", "resources")


class TemplateError(ValueError):
    """`args[0]` says which part of the template is no part of a pod, and what to write instead."""


def check_template(template: Mapping[str, Any]) -> None:
    """Raises `TemplateError` where what is merged here has not the shape that it has in a pod; all else the API server checks."""
    where, spec = "spec.workers.template.spec", template.get("spec") or {}
    _check_shape(where, spec, LISTS, OBJECTS)
    for number, entry in enumerate(spec.get("containers") or ()):
        if entry.get("name") == c.CONTAINER_TRAINER:
            _check_shape(f"{where}.containers[{number}]", entry, TRAINER_LISTS, TRAINER_OBJECTS)


def _check_shape(where: str, given: Mapping[str, Any], lists: Iterable[str], objects: Iterable[str]) -> None:
    for field in lists:
        value = given.get(field)
        if value is not None and not (isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value)):
            raise TemplateError(f"{where}.{field} must be a list of objects, as in a pod: write '- ' before each of them")
    for field in objects:
        value = given.get(field)
        if value is not None and not isinstance(value, Mapping):
            raise TemplateError(f"{where}.{field} must be an object, as in a pod: write its fields as NAME: VALUE")


def merge_env(*layers: Iterable[Mapping[str, Any]]) -> list[Json]:
    """One entry per name, the last layer that has it wins, in the order in which the names first appear.

    So the variables of an earlier layer may be used as `$(NAME)` in a later one, which the kubelet expands from left to right.
    """
    merged: dict[str, Json] = {}
    for layer in layers:
        for entry in layer:
            merged[str(entry.get("name", ""))] = dict(entry)
    return list(merged.values())


def merge_objects(base: Mapping[str, Any], over: Mapping[str, Any]) -> Json:
    """`over` laid over `base`, recursively; `None` in `over` removes the key, any other value that is no object replaces it."""
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge_objects(merged[key], value)
        else:
            merged[key] = deepcopy(value)
    return merged


def overlay_pod(pod: Json, template: Mapping[str, Any]) -> Json:
    """The pod with the template laid over it; `pod` is not changed."""
    over_meta, over_spec = template.get("metadata") or {}, template.get("spec") or {}
    metadata, spec = dict(pod["metadata"]), dict(pod["spec"])
    for field in ("labels", "annotations"):
        metadata[field] = dict(over_meta.get(field) or {}) | metadata[field]
    plain = {key: value for key, value in over_spec.items() if key not in OWNED_SPEC}
    spec = merge_objects(spec, plain)
    spec["securityContext"] = _security(spec["securityContext"], over_spec.get("securityContext") or {})
    spec["containers"] = _containers(spec["containers"], over_spec.get("containers") or ())
    init = [*(spec.get("initContainers") or ()), *_foreign_only(over_spec.get("initContainers") or ())]
    if init:
        spec["initContainers"] = init
    spec["volumes"] = [*spec["volumes"], *_foreign_only(over_spec.get("volumes") or ())]
    spec["tolerations"] = _tolerations(spec["tolerations"], over_spec.get("tolerations") or ())
    return {**pod, "metadata": metadata, "spec": spec}


def _foreign_only(entries: Iterable[Mapping[str, Any]]) -> list[Json]:
    return [deepcopy(dict(entry)) for entry in entries if not str(entry.get("name", "")).startswith(c.OWN_PREFIX)]


def _security(ours: Json, theirs: Mapping[str, Any]) -> Json:
    merged = merge_objects(ours, theirs)
    if theirs.get("runAsUser") == 0 and "runAsNonRoot" not in theirs:
        merged.pop("runAsNonRoot", None)  # asking for root says otherwise; both together never start
    return merged


def _containers(ours: list[Json], theirs: Iterable[Mapping[str, Any]]) -> list[Json]:
    trainer, sidecars = ours[0], []
    for entry in theirs:
        if entry.get("name") == c.CONTAINER_TRAINER:
            trainer = _trainer(trainer, entry)
        else:
            sidecars.extend(_foreign_only([entry]))
    return [trainer, *sidecars]


def _trainer(ours: Json, theirs: Mapping[str, Any]) -> Json:
    appended = ("volumeMounts", "ports", "envFrom")
    plain = {
        key: value for key, value in theirs.items() if key not in OWNED_TRAINER and key not in (*appended, "workingDir", "securityContext")
    }
    merged = merge_objects(ours, plain)
    merged.setdefault("workingDir", theirs.get("workingDir") or "")
    if not merged["workingDir"]:
        del merged["workingDir"]
    if theirs.get("securityContext"):
        merged["securityContext"] = _security(ours["securityContext"], theirs["securityContext"])
    for field in appended:
        if theirs.get(field):
            merged[field] = [*(deepcopy(list(theirs[field])) if field == "envFrom" else ()), *(ours.get(field) or ())]
            if field != "envFrom":
                merged[field].extend(deepcopy(list(theirs[field])))
    return merged


def _tolerations(ours: list[Json], theirs: Iterable[Mapping[str, Any]]) -> list[Json]:
    given = [deepcopy(dict(entry)) for entry in theirs]
    return [entry for entry in ours if not any(_covers(theirs, entry) for theirs in given)] + given


def _covers(given: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Of several tolerations of one taint the shortest counts, so a user's longer one replaces ours."""
    return given.get("key") in (None, "", ours["key"]) and given.get("effect") in (None, "", ours["effect"])
