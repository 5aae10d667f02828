"""Manifests that must be refused, each with the path and the words that a user is to read.

One table for both judges: local mode's validator (unit tests) and the real API server (cluster tests).
"""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import yaml

import wrong_builtin
import wrong_delivery

BASE = "{trainer: {command: [python, train.py]}}"
REQUIRED_COMMAND = (
    "command is required: write the program and its arguments as a list, for example [python, train.py]; "
    "or write builtin and a task of the trainer image"
)
ONE_GROUP = "pattern needs exactly one group around the number, for example loss=([0-9.]+); write other groups as (?:...)"
RE2 = "pattern must be a regular expression of RE2's syntax: no look-around, no back-references"
QUANTITY = "in body should match '^[0-9]+(\\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$'"
NAME = (
    "the job's name becomes part of its pods' host names: write at most 52 characters, lower-case letters, digits and '-', "
    "a letter first and no '-' at the end"
)
PATH = "path is a directory inside the claim: write it without a leading or trailing '/' and without '.' and '..', for example digits/run-1"
DURATION = "window is a duration of hours, minutes and seconds, at least 1s: write 90s, 30m or 1h30m"
BELOW = "replicas is below minReplicas: write as many as minReplicas or more, or lower minReplicas first"
GPUS = "GPUs are counted in whole numbers: write nvidia.com/gpu: 8"
OURS = "is set by the operator for each process and generation: remove it from env"
FIXED = "can't be changed while the job exists: delete the job and apply it again"


@dataclass(frozen=True)
class Wrong:
    """`change` (YAML) is merged into the spec of the smallest job. With `before`, the job exists with that change and is replaced."""

    case: str
    change: str
    path: str  # empty: an unknown field, or the object as a whole
    message: str
    name: str = "wrong"
    before: str | None = None
    manifest: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "manifest", job(self.change, self.name))


def merged(into: Any, change: Any) -> Any:
    """JSON merge, without its deletion of nulls: a null is a case of its own."""
    if not isinstance(into, dict) or not isinstance(change, dict):
        return deepcopy(change)
    return {**deepcopy(into), **{key: merged(into.get(key), value) for key, value in change.items()}}


def job(change: str = "{}", name: str = "right") -> dict[str, Any]:
    return {
        "apiVersion": "training.lepton.ai/v1alpha1",
        "kind": "LeptonTrainingJob",
        "metadata": {"name": name},
        "spec": merged(yaml.safe_load(BASE), yaml.safe_load(change)),
    }


def trainer(env: str) -> str:
    return f"{{trainer: {{env: [{env}]}}}}"


def pattern(text: str) -> str:
    return yaml.safe_dump({"metrics": {"fromLogs": [{"name": "loss", "pattern": text}]}})


def template(text: str) -> str:
    return f"{{workers: {{template: {text}}}}}"


WRONG = (
    # What is missing.
    Wrong("trainer is missing", "{trainer: null}", "spec.trainer", "Required value"),
    Wrong("command is missing", "{trainer: {command: null}}", "spec.trainer.command", REQUIRED_COMMAND),
    Wrong("command is empty", "{trainer: {command: []}}", "spec.trainer.command", REQUIRED_COMMAND),
    Wrong("command is an empty word", "{trainer: {command: ['']}}", "spec.trainer.command", REQUIRED_COMMAND),
    Wrong(
        "code without a source",
        "{trainer: {code: {}}}",
        "spec.trainer.code",
        "code names where the script comes from: write configMap and the name of a ConfigMap",
    ),
    Wrong(
        "checkpoint without a claim",
        "{checkpoint: {path: digits}}",
        "spec.checkpoint",
        "claimName is required: write the name of a PersistentVolumeClaim that all workers can mount",
    ),
    Wrong("variable without a name", trainer("{value: x}"), "spec.trainer.env[0].name", "Required value"),
    Wrong("log pattern without a pattern", "{metrics: {fromLogs: [{name: loss}]}}", "spec.metrics.fromLogs[0].pattern", "Required value"),
    Wrong(
        "sidecar without a name",
        template("{spec: {containers: [{image: x}]}}"),
        "spec.workers.template.spec.containers[0].name",
        "Required value",
    ),
    # Mistyped names.
    Wrong("replica for replicas", "{workers: {replica: 2}}", "", 'unknown field "spec.workers.replica"'),
    Wrong("trainers for trainer", "{trainers: {}}", "", 'unknown field "spec.trainers"'),
    Wrong("envfrom for envFrom", "{trainer: {envfrom: []}}", "", 'unknown field "spec.trainer.envfrom"'),
    Wrong("val for value", trainer("{name: A, val: b}"), "", 'unknown field "spec.trainer.env[0].val"'),
    Wrong("maxRestart for maxRestarts", "{recovery: {maxRestart: 2}}", "", 'unknown field "spec.recovery.maxRestart"'),
    Wrong("a volume's spec beside the template's", template("{volumes: []}"), "", 'unknown field "spec.workers.template.volumes"'),
    # Numbers of workers.
    Wrong("no workers", "{workers: {replicas: 0}}", "spec.workers.replicas", "should be greater than or equal to 1"),
    Wrong("fewer than no workers", "{workers: {replicas: -3}}", "spec.workers.replicas", "should be greater than or equal to 1"),
    Wrong("a billion workers", "{workers: {replicas: 1000000000}}", "spec.workers.replicas", "should be less than or equal to 10000"),
    Wrong("half a worker", "{workers: {replicas: 1.5}}", "spec.workers.replicas", 'must be of type integer: "number"'),
    Wrong("workers in words", "{workers: {replicas: four}}", "spec.workers.replicas", 'must be of type integer: "string"'),
    Wrong("no minimum", "{workers: {minReplicas: 0}}", "spec.workers.minReplicas", "should be greater than or equal to 1"),
    Wrong(
        "a minimum above the number",
        "{workers: {replicas: 2, minReplicas: 3}}",
        "spec.workers.replicas",
        BELOW,
    ),
    Wrong(
        "scaled below the minimum",
        "{workers: {replicas: 1, minReplicas: 2}}",
        "spec.workers.replicas",
        BELOW,
        before="{workers: {replicas: 3, minReplicas: 2}}",
    ),
    Wrong(
        "processes in words",
        "{workers: {procsPerWorker: all}}",
        "spec.workers.procsPerWorker",
        "procsPerWorker is a number from 1 to 256, or auto: one process for each GPU of the pod",
    ),
    Wrong(
        "no processes", "{workers: {procsPerWorker: 0}}", "spec.workers.procsPerWorker", "procsPerWorker is a number from 1 to 256, or auto"
    ),
    Wrong("workers as a list", "{workers: [2]}", "spec.workers", 'must be of type object: "array"'),
    # Quantities.
    Wrong("memory in GB", "{workers: {resources: {limits: {memory: 16GB}}}}", "spec.workers.resources.limits.memory", QUANTITY),
    Wrong("memory with a space", "{workers: {resources: {requests: {memory: 16 Gi}}}}", "spec.workers.resources.requests.memory", QUANTITY),
    Wrong(
        "less than no CPU", "{workers: {resources: {limits: {cpu: -1}}}}", "spec.workers.resources.limits.cpu", "greater than or equal to 0"
    ),
    Wrong(
        "an unquoted fraction",
        "{workers: {resources: {limits: {cpu: 0.5}}}}",
        "spec.workers.resources.limits.cpu",
        'must be of type integer,string: "number"',
    ),
    Wrong("half a GPU", "{workers: {resources: {limits: {nvidia.com/gpu: '0.5'}}}}", "spec.workers.resources.limits", GPUS),
    Wrong("GPUs in thousands", "{workers: {resources: {requests: {amd.com/gpu: 1k}}}}", "spec.workers.resources.requests", GPUS),
    Wrong("shared memory in words", "{workers: {sharedMemory: plenty}}", "spec.workers.sharedMemory", "should match"),
    Wrong("no shared memory", "{workers: {sharedMemory: 0}}", "spec.workers.sharedMemory", "should be greater than or equal to 1"),
    # The trainer.
    Wrong("command as a line", "{trainer: {command: python train.py}}", "spec.trainer.command", 'must be of type array: "string"'),
    Wrong("a number in the arguments", "{trainer: {args: [--epochs, 3]}}", "spec.trainer.args[1]", 'must be of type string: "integer"'),
    Wrong(
        "image with a space",
        "{trainer: {image: my image}}",
        "spec.trainer.image",
        "image must be an image reference without spaces, for example registry.example.com/team/train:1.4",
    ),
    Wrong(
        "relative working directory",
        "{trainer: {workingDir: src}}",
        "spec.trainer.workingDir",
        "workingDir must be an absolute path, for example /workspace",
    ),
    Wrong(
        "ConfigMap in capitals",
        "{trainer: {code: {configMap: My_Code}}}",
        "spec.trainer.code.configMap",
        "configMap is the name of a ConfigMap: lower-case letters, digits, '-' and '.'",
    ),
    # The built-in trainer.
    *(Wrong(*entry) for entry in wrong_builtin.WRONG),
    # The environment.
    Wrong("sets RANK", trainer("{name: RANK, value: '0'}"), "spec.trainer.env[0].name", f"RANK {OURS}"),
    Wrong("sets MASTER_ADDR", trainer("{name: A}, {name: MASTER_ADDR, value: x}"), "spec.trainer.env[1].name", f"MASTER_ADDR {OURS}"),
    Wrong(
        "sets a TORCHELASTIC name",
        trainer("{name: TORCHELASTIC_RUN_ID, value: x}"),
        "spec.trainer.env[0].name",
        f"TORCHELASTIC_RUN_ID {OURS}",
    ),
    Wrong("sets a LEPTON name", trainer("{name: LEPTON_JOB_NAME, value: x}"), "spec.trainer.env[0].name", f"LEPTON_JOB_NAME {OURS}"),
    Wrong(
        "the same variable twice",
        trainer("{name: A, value: x}, {name: A, value: y}"),
        "spec.trainer.env[1]",
        'Duplicate value: {"name":"A"}',
    ),
    Wrong(
        "variable with a space",
        trainer("{name: MY VAR, value: x}"),
        "spec.trainer.env[0].name",
        "the name of a variable is letters, digits",
    ),
    Wrong("unquoted number as a value", trainer("{name: N, value: 8}"), "spec.trainer.env[0].value", 'must be of type string: "integer"'),
    Wrong(
        "unquoted boolean as a value", trainer("{name: N, value: true}"), "spec.trainer.env[0].value", 'must be of type string: "boolean"'
    ),
    Wrong(
        "value and valueFrom",
        trainer("{name: A, value: x, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}"),
        "spec.trainer.env[0]",
        "write either value or valueFrom, not both",
    ),
    Wrong(
        "valueFrom without a source",
        trainer("{name: A, valueFrom: {}}"),
        "spec.trainer.env[0].valueFrom",
        "valueFrom names exactly one source: configMapKeyRef, secretKeyRef, fieldRef or resourceFieldRef",
    ),
    Wrong(
        "valueFrom without a key",
        trainer("{name: A, valueFrom: {secretKeyRef: {name: s}}}"),
        "spec.trainer.env[0].valueFrom.secretKeyRef.key",
        "Required value",
    ),
    Wrong(
        "envFrom of two sources",
        "{trainer: {envFrom: [{configMapRef: {name: a}, secretRef: {name: b}}]}}",
        "spec.trainer.envFrom[0]",
        "each entry of envFrom names exactly one source: configMapRef or secretRef",
    ),
    # The pod template.
    Wrong(
        "restart policy",
        template("{spec: {restartPolicy: Always}}"),
        "spec.workers.template.spec.restartPolicy",
        "restartPolicy is always Never, the operator restarts workers itself: remove it (recovery.maxRestarts sets the budget)",
    ),
    Wrong(
        "host name",
        template("{spec: {hostname: mine}}"),
        "spec.workers.template.spec.hostname",
        "hostname is set by the operator for each worker: remove it",
    ),
    Wrong(
        "subdomain",
        template("{spec: {subdomain: mine}}"),
        "spec.workers.template.spec.subdomain",
        "subdomain is set by the operator: remove it, and write intraJobCommunication: true for names that resolve",
    ),
    Wrong(
        "the trainer's command in the template",
        template("{spec: {containers: [{name: trainer, command: [sh]}]}}"),
        "spec.workers.template.spec.containers[0]",
        "image, command, args and workingDir of the container trainer are written in spec.trainer: remove them here",
    ),
    Wrong(
        "two sidecars of one name",
        template("{spec: {containers: [{name: a, image: x}, {name: a, image: y}]}}"),
        "spec.workers.template.spec.containers[1]",
        'Duplicate value: {"name":"a"}',
    ),
    Wrong(
        "a label of ours",
        template("{metadata: {labels: {training.lepton.ai/job: x}}}"),
        "spec.workers.template.metadata.labels",
        "labels that begin with training.lepton.ai/ are the operator's: use another prefix",
    ),
    Wrong(
        "an annotation of ours",
        template("{metadata: {annotations: {training.lepton.ai/ca: x}}}"),
        "spec.workers.template.metadata.annotations",
        "annotations that begin with training.lepton.ai/ are the operator's: use another prefix",
    ),
    # Checkpoints.
    Wrong("absolute checkpoint path", "{checkpoint: {claimName: c, path: /ckpt}}", "spec.checkpoint.path", PATH),
    Wrong("checkpoint path that climbs out", "{checkpoint: {claimName: c, path: a/../../b}}", "spec.checkpoint.path", PATH),
    Wrong("empty checkpoint path", "{checkpoint: {claimName: c, path: ''}}", "spec.checkpoint.path", "should be at least 1 chars long"),
    Wrong(
        "claim with a slash",
        "{checkpoint: {claimName: a/b}}",
        "spec.checkpoint.claimName",
        "claimName is the name of a PersistentVolumeClaim: lower-case letters, digits, '-' and '.'",
    ),
    # The restart budget.
    Wrong("fewer than no restarts", "{recovery: {maxRestarts: -1}}", "spec.recovery.maxRestarts", "should be greater than or equal to 0"),
    Wrong("restarts without an end", "{recovery: {maxRestarts: 101}}", "spec.recovery.maxRestarts", "should be less than or equal to 100"),
    Wrong("window without a unit", "{recovery: {window: '90'}}", "spec.recovery.window", DURATION),
    Wrong("window as a number", "{recovery: {window: 90}}", "spec.recovery.window", 'must be of type string: "integer"'),
    Wrong("window in words", "{recovery: {window: an hour}}", "spec.recovery.window", DURATION),
    Wrong("window of nothing", "{recovery: {window: 0s}}", "spec.recovery.window", DURATION),
    # Log patterns.
    Wrong("pattern without a group", pattern("loss=.*"), "spec.metrics.fromLogs[0].pattern", ONE_GROUP),
    Wrong("pattern with two groups", pattern("(loss|cost)=([0-9.]+)"), "spec.metrics.fromLogs[0].pattern", ONE_GROUP),
    Wrong("pattern with a group in a group", pattern("loss=(([0-9]+)[.][0-9]+)"), "spec.metrics.fromLogs[0].pattern", ONE_GROUP),
    Wrong("pattern whose only group is a class", pattern("loss=[(0-9)]+"), "spec.metrics.fromLogs[0].pattern", ONE_GROUP),
    Wrong("pattern that does not compile", pattern("loss=([0-9.+"), "spec.metrics.fromLogs[0].pattern", RE2),
    Wrong("pattern with look-ahead", pattern("(?=loss)=([0-9.]+)"), "spec.metrics.fromLogs[0].pattern", RE2),
    Wrong("pattern with a back-reference", pattern(r"([0-9]+)\1"), "spec.metrics.fromLogs[0].pattern", RE2),
    Wrong(
        "pattern for something unknown",
        "{metrics: {fromLogs: [{name: accuracy, pattern: 'acc=([0-9.]+)'}]}}",
        "spec.metrics.fromLogs[0].name",
        'Unsupported value: "accuracy": supported values: "step", "loss", "samples"',
    ),
    Wrong(
        "two patterns for one number",
        "{metrics: {fromLogs: [{name: loss, pattern: 'a=(.)'}, {name: loss, pattern: 'b=(.)'}]}}",
        "spec.metrics.fromLogs[1]",
        'Duplicate value: {"name":"loss"}',
    ),
    # The requirement, and what is delivered.
    *(Wrong(*entry) for entry in wrong_delivery.WRONG),
    # Names.
    Wrong("a name too long for its pods", "{}", "metadata.name", NAME, name="a" * 53),
    Wrong("a name with a dot", "{}", "metadata.name", NAME, name="my.job"),
    Wrong("a name that begins with a digit", "{}", "metadata.name", NAME, name="2nd-try"),
    # Switches.
    Wrong("a switch in words", "{intraJobCommunication: 'yes'}", "spec.intraJobCommunication", 'must be of type boolean: "string"'),
    # What a job that exists may not change.
    Wrong("another command", "{trainer: {command: [python, other.py]}}", "spec.trainer", f"the trainer {FIXED}", before="{}"),
    Wrong(
        "other settings of the built-in trainer", wrong_builtin.LONGER, "spec.trainer", f"the trainer {FIXED}", before=wrong_builtin.BUILTIN
    ),
    Wrong("another image", "{trainer: {image: b}}", "spec.trainer", f"the trainer {FIXED}", before="{trainer: {image: a}}"),
    Wrong("other resources", "{workers: {resources: {limits: {cpu: 2}}}}", "spec.workers", "the shape of a worker", before="{}"),
    Wrong("another claim", "{checkpoint: {claimName: b}}", "spec.checkpoint", f"checkpoint {FIXED}", before="{checkpoint: {claimName: a}}"),
    Wrong("checkpoints taken away", "{}", "spec.checkpoint", f"checkpoint {FIXED}", before="{checkpoint: {claimName: a}}"),
    Wrong(
        "names asked for later",
        "{intraJobCommunication: true}",
        "spec.intraJobCommunication",
        f"intraJobCommunication {FIXED}",
        before="{}",
    ),
)

RIGHT = {
    "the smallest job": "{}",
    "an elastic job": "{workers: {replicas: 4, minReplicas: 2}}",
    "GPUs and memory": "{workers: {sharedMemory: 16Gi, resources: {limits: {nvidia.com/gpu: 8, nvidia.com/mig-x: '2', memory: 1.5Gi}}}}",
    "a variable of each kind": trainer(
        "{name: A, value: ''}, {name: B, valueFrom: {secretKeyRef: {name: s, key: k, optional: true}}},"
        " {name: C, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}},"
        " {name: LEPTON_WARM_START, value: '0'}, {name: LEPTON_PRELOAD, value: x}"
    ),
    "whole sources": "{trainer: {envFrom: [{prefix: P_, configMapRef: {name: c}}, {secretRef: {name: s, optional: true}}]}}",
    "a sidecar and volumes": template(
        "{metadata: {labels: {team: vision}}, spec: {volumes: [{name: v, emptyDir: {}}], tolerations: [{operator: Exists}],"
        " containers: [{name: trainer, volumeMounts: [{name: v, mountPath: /v}]}, {name: side, image: x, command: [sleep]}]}}"
    ),
    "a named group": pattern(r"loss[=:]\s*(?P<loss>[-+0-9.e()]+) \(smoothed\)"),
    "other groups that do not capture": pattern("(?:loss|cost) = (?i:x)?([0-9.]+)"),
    "a budget": "{recovery: {maxRestarts: 0, window: 1h30m}}",
    "checkpoints": "{checkpoint: {claimName: my.claim, path: digits/run-1}}",
    "nulls for what is absent": "{trainer: {image: null, env: null}, workers: null, checkpoint: null}",
    **wrong_delivery.RIGHT,
    **wrong_builtin.RIGHT,
    "code": "{trainer: {code: {configMap: digits}, workingDir: /workspace, image: 'registry.example.com:5000/a@sha256:0123456789abcdef'}}",
}
RIGHT_UPDATES = {
    **wrong_delivery.RIGHT_UPDATES,
    "scaled": ("{workers: {replicas: 2}}", "{workers: {replicas: 5}}"),
    "a wider budget": ("{}", "{recovery: {maxRestarts: 50, window: 24h}}"),
    "variables in another order": (
        trainer("{name: A, value: x}, {name: B, value: y}"),
        trainer("{name: B, value: y}, {name: A, value: x}"),
    ),
    "a toleration": ("{}", template("{spec: {tolerations: [{operator: Exists}]}}")),
    "another pattern": (pattern("a=(.)"), pattern("b=(.)")),
}
