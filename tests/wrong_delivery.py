"""Manifests with a requirement, and of what becomes of the model, that must be refused; for the table of `wrong_manifests`.

Each is (case, change, path, message), and where the job exists before: its name and the change that it was made with.
"""

BUILTIN = "trainer: {command: null, builtin: {imageClassification: {}}}"
FRACTION = "is a fraction, above 0 and at most 1: write 0.97, not 97"
ON_MISS = "onMiss takes learningRate, epochs, width and warmStart with builtin, and args and env with a script"
SEEN = "serving pods must see the model: write checkpoint.claimName (export.path empty or below /checkpoints/), or an s3:// export.path"
FIXED = "can't be changed while the job exists: delete the job and apply it again"


def evaluation(text: str) -> str:
    return f"{{evaluation: {{{text}}}}}"


def on_miss(item: str, trainer_change: str = "") -> str:
    more = f", {trainer_change}" if trainer_change else ""
    return f"{{evaluation: {{metric: score, target: 3, onMiss: [{item}]}}{more}}}"


def delivered(text: str) -> str:
    return f"{{{BUILTIN}, {text}}}"


WRONG = (
    ("a requirement without target", "{evaluation: {metric: accuracy}}", "spec.evaluation.target", "Required value"),
    ("a requirement of nothing", evaluation("metric: '', target: 1"), "spec.evaluation.metric", "should be at least 1 chars long"),
    ("accuracy in percent", evaluation("metric: accuracy, target: 97"), "spec.evaluation.target", f"accuracy {FRACTION}"),
    ("no recall at all", evaluation("metric: recall@10, target: 0"), "spec.evaluation.target", f"recall@10 {FRACTION}"),
    (
        "an accuracy to be kept low",
        evaluation("metric: top5Accuracy, target: 0.1, mode: min"),
        "spec.evaluation.mode",
        "top5Accuracy is the better the larger it is: write max",
    ),
    (
        "a loss to be made large",
        evaluation("metric: validationLoss, target: 0.2"),
        "spec.evaluation.mode",
        "validationLoss is the better the smaller it is: write min",
    ),
    ("a target in words", evaluation("metric: accuracy, target: '0.97'"), "spec.evaluation.target", 'must be of type number: "string"'),
    ("a third way to be better", evaluation("metric: x, target: 1, mode: best"), "spec.evaluation.mode", 'supported values: "max", "min"'),
    ("no rounds", evaluation("metric: x, target: 1, maxRounds: 0"), "spec.evaluation.maxRounds", "greater than or equal to 1"),
    ("too many rounds", evaluation("metric: x, target: 1, maxRounds: 101"), "spec.evaluation.maxRounds", "less than or equal to 100"),
    ("factors for a script", on_miss("{learningRate: 0.3}"), "spec.evaluation.onMiss", ON_MISS),
    ("further arguments for the built-in trainer", on_miss("{args: [--fast]}", BUILTIN), "spec.evaluation.onMiss", ON_MISS),
    ("both kinds at once", on_miss("{epochs: 2, env: [{name: A, value: b}]}"), "spec.evaluation.onMiss", ON_MISS),
    (
        "a factor of nothing",
        on_miss("{epochs: 0}", BUILTIN),
        "spec.evaluation.onMiss[0].epochs",
        "should be greater than 0",
    ),
    (
        "a warm start without checkpoints",
        on_miss("{warmStart: true}", BUILTIN),
        "spec.evaluation.onMiss",
        "warmStart needs checkpoints: write checkpoint.claimName, or remove warmStart",
    ),
    (
        "a round that sets RANK",
        on_miss("{env: [{name: RANK, value: '0'}]}"),
        "spec.evaluation.onMiss[0].env[0].name",
        "none that the operator sets (RANK, MASTER_ADDR, LEPTON_*)",
    ),
    (
        "another requirement later",
        evaluation("metric: accuracy, target: 0.9"),
        "spec",
        f"evaluation, optimise and export {FIXED}",
        "wrong",
        evaluation("metric: accuracy, target: 0.97"),
    ),
    ("export of a script", "{export: {}}", "spec.trainer", "optimise, export and serve go with the built-in trainer"),
    ("a method unknown", delivered("optimise: {methods: [shrink]}"), "spec.optimise.methods[0]", 'supported values: "quantise"'),
    ("a tolerance in percent", delivered("optimise: {methods: [prune], tolerance: 5}"), "spec.optimise.tolerance", "less than or equal"),
    ("a relative export path", delivered("export: {path: models}"), "spec.export.path", "path is an absolute directory or s3://"),
    ("serving from nowhere", delivered("serve: {}"), "spec.serve", SEEN),
    (
        "serving from a pod's own disk",
        delivered("serve: {}, export: {path: /tmp/model}, checkpoint: {claimName: c}"),
        "spec.serve",
        SEEN,
    ),
    ("a privileged port", delivered("serve: {port: 80}, checkpoint: {claimName: c}"), "spec.serve.port", "greater than or equal to 1024"),
    ("nobody serves", delivered("serve: {replicas: 0}, checkpoint: {claimName: c}"), "spec.serve.replicas", "greater than or equal to 1"),
    (
        "serving asked for when nothing was exported",
        delivered("serve: {}, checkpoint: {claimName: c}"),
        "spec.serve",
        "serve can't be added to a job that exports no model",
        "wrong",
        delivered("checkpoint: {claimName: c}"),
    ),
)
RIGHT = {
    "a requirement of a script": on_miss("{args: [--lr, '0.1']}, {args: [--lr, '0.01'], env: [{name: LONG, value: '1'}]}"),
    "a requirement on a loss": evaluation("metric: loss, target: 0.2, mode: min, maxRounds: 100"),
    "all of the built-in trainer's way": delivered(
        "checkpoint: {claimName: c}, evaluation: {metric: accuracy, target: 1, onMiss: [{epochs: 0.3, warmStart: true}, {width: 1.5}]},"
        " optimise: {methods: [quantise, prune], tolerance: 0.02}, export: {formats: [safetensors, onnx], path: /checkpoints/models},"
        " serve: {replicas: 2, port: 9000, resources: {limits: {cpu: 500m, memory: 1Gi}}}"
    ),
    "serving from an object store": delivered("serve: {}, export: {path: 's3://bucket/models'}"),
}
RIGHT_UPDATES = {
    "serving scaled, and given up": (
        delivered("checkpoint: {claimName: c}, serve: {replicas: 3}"),
        delivered("checkpoint: {claimName: c}"),
    ),
}
