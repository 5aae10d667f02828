"""Settings of the built-in trainer that must be refused, with path and words; a part of the table in `wrong_manifests`."""

from lepton_trainer.train.config import TASKS

ONE_TASK = f"builtin names exactly one task: write {' or '.join(TASKS)} with its settings, or {{}} for its defaults"
INSTEAD = "builtin is instead of command, args and code: remove them, or remove builtin"
IMAGES, TEXT = "spec.trainer.builtin.imageClassification", "spec.trainer.builtin.languageModeling"
TABLES, RATINGS = "spec.trainer.builtin.tabularClassification", "spec.trainer.builtin.recommendation"
WORDS = "spec.trainer.builtin.textClassification"


def builtin(text: str) -> str:
    """The built-in trainer instead of the smallest job's command."""
    return f"{{trainer: {{command: null, builtin: {text}}}}}"


BUILTIN = builtin("{imageClassification: {}}")
LONGER = builtin("{imageClassification: {training: {epochs: 3}}}")

# (case, change, path, message), as `wrong_manifests.Wrong` has them.
WRONG = (
    ("a command beside the built-in trainer", "{trainer: {builtin: {imageClassification: {}}}}", "spec.trainer.builtin", INSTEAD),
    ("arguments for the built-in trainer", builtin("{languageModeling: {}}, args: [-v]"), "spec.trainer.builtin", INSTEAD),
    ("a script for the built-in trainer", builtin("{languageModeling: {}}, code: {configMap: c}"), "spec.trainer.builtin", INSTEAD),
    ("built-in trainer without a task", builtin("{}"), "spec.trainer.builtin", ONE_TASK),
    ("a task without a value", builtin("{imageClassification: null}"), "spec.trainer.builtin", ONE_TASK),
    ("two tasks", builtin("{imageClassification: {}, languageModeling: {}}"), "spec.trainer.builtin", ONE_TASK),
    ("a mistyped task", builtin("{imageClasification: {}}"), "", 'unknown field "spec.trainer.builtin.imageClasification"'),
    (
        "a mistyped setting",
        builtin("{imageClassification: {training: {epoch: 3}}}"),
        "",
        'unknown field "spec.trainer.builtin.imageClassification.training.epoch"',
    ),
    ("a task's name alone", builtin("imageClassification"), "spec.trainer.builtin", 'must be of type object: "string"'),
    (
        "epochs in words",
        builtin("{imageClassification: {training: {epochs: ten}}}"),
        f"{IMAGES}.training.epochs",
        "must be of type number",
    ),
    ("half a step", builtin("{languageModeling: {training: {steps: 1.5}}}"), f"{TEXT}.training.steps", "must be of type integer"),
    (
        "no learning rate",
        builtin("{imageClassification: {optimizer: {learningRate: 0}}}"),
        f"{IMAGES}.optimizer.learningRate",
        "in body should be greater than 0",
    ),
    (
        "an average that never moves",
        builtin("{imageClassification: {training: {ema: 1.0}}}"),
        f"{IMAGES}.training.ema",
        "in body should be less than 1",
    ),
    (
        "a gradient clipped at a million and more",
        builtin("{imageClassification: {optimizer: {clipNorm: 1000000.5}}}"),
        f"{IMAGES}.optimizer.clipNorm",
        "in body should be less than or equal to 1e+06",
    ),
    (
        "an unknown source",
        builtin("{imageClassification: {data: {source: cifar}}}"),
        f"{IMAGES}.data.source",
        'Unsupported value: "cifar": supported values: "digits", "mnist", "folder"',
    ),
    (
        "tokens of three bytes",
        builtin("{languageModeling: {data: {tokenBytes: 3}}}"),
        f"{TEXT}.data.tokenBytes",
        'Unsupported value: 3: supported values: "2", "4"',
    ),
    (
        "images without a place",
        builtin("{imageClassification: {data: {source: mnist}}}"),
        f"{IMAGES}.data",
        "data.path is missing: write the directory of the files, or source digits",
    ),
    (
        "text without a place",
        builtin("{languageModeling: {data: {source: folder, path: ''}}}"),
        f"{TEXT}.data",
        "data.path is missing: write the directory of the files, or source stdlib",
    ),
    (
        "more tokens than two bytes hold",
        builtin("{languageModeling: {data: {source: tokens, path: x, vocabulary: 100000}}}"),
        f"{TEXT}.data",
        "data.tokenBytes is 2, which holds 65536 tokens at most",
    ),
    ("n-grams in stages", builtin("{textClassification: {parallelism: {pipeline: 2}}}"), WORDS, "must be 1 here"),
    ("a GRU without width", builtin("{textClassification: {model: {kind: rnn, width: 4}}}"), WORDS, "model.width is below 8"),
    (
        "reviews without a place",
        builtin("{textClassification: {data: {source: imdb}}}"),
        f"{WORDS}.data",
        "data.path is missing: write the csv, or",
    ),
    ("a CNN in stages", builtin("{imageClassification: {parallelism: {pipeline: 2}}}"), IMAGES, "must be 1 here"),
    ("an MLP in stages", builtin("{tabularClassification: {parallelism: {pipeline: 2}}}"), TABLES, "must be 1 here"),
    ("split vectors", builtin("{recommendation: {parallelism: {tensor: 2}}}"), RATINGS, "must be 1 here"),
    (
        "a table without a place",
        builtin("{tabularClassification: {data: {source: csv}}}"),
        f"{TABLES}.data",
        "data.path is missing: write the csv file, or a directory with train.csv and test.csv",
    ),
    (
        "ratings without a place",
        builtin("{recommendation: {data: {source: csv, path: ''}}}"),
        f"{RATINGS}.data",
        "data.path is missing: write the csv file, or a directory with ratings.csv",
    ),
    (
        "a column of an unknown kind",
        builtin("{tabularClassification: {data: {columns: {age: integer}}}}"),
        f"{TABLES}.data.columns.age",
        'Unsupported value: "integer": supported values: "number", "category", "drop"',
    ),
    (
        "a miss that costs nothing",
        builtin("{tabularClassification: {decision: {miss: 0}}}"),
        f"{TABLES}.decision.miss",
        "in body should be greater than 0",
    ),
    *(
        (f"{what} {task}", builtin(f"{{{task}: {{{settings}}}}}"), f"spec.trainer.builtin.{task}{place}", message)
        for task in ("tabularClassification", "recommendation", "textClassification")
        for what, settings, place, message in (
            ("Muon on sharded", "optimizer: {name: muon}, parallelism: {strategy: fsdp}", "", "optimizer.name muon needs whole matrices"),
        )
    ),
    (
        "stages of sharded weights",
        builtin("{languageModeling: {parallelism: {pipeline: 2, strategy: fsdp}}}"),
        f"{TEXT}.parallelism",
        "parallelism.pipeline goes with data parallelism alone",
    ),
    (
        "Muon on parts of matrices",
        builtin("{languageModeling: {optimizer: {name: muon}, parallelism: {tensor: 2}}}"),
        TEXT,
        "optimizer.name muon needs whole matrices",
    ),
    (
        "Muon on sharded images",
        builtin("{imageClassification: {optimizer: {name: muon}, parallelism: {strategy: fsdp}}}"),
        IMAGES,
        "optimizer.name muon needs whole matrices",
    ),
)

RIGHT = {
    "images by the built-in trainer": builtin(
        "{imageClassification: {data: {source: mnist, path: /data, rotate: 10}, optimizer: {learningRate: 0.003}, training: {epochs: 40,"
        " ema: 0.99}, schedule: {name: wsd}, checkpoint: {everySteps: 100, keep: 3}, output: {plots: false}}}"
    ),
    "a table by the built-in trainer": builtin(
        "{tabularClassification: {data: {source: csv, path: /data/loans.csv, target: paid, columns: {zip: category, id: drop}},"
        " decision: {falseAlarm: 1, miss: 5.5}, classWeights: balanced}}"
    ),
    "ratings by the built-in trainer": builtin("{recommendation: {objective: ranking, model: {kind: factorization, factors: 64}}}"),
    "classes of text by the built-in trainer": builtin(
        "{textClassification: {data: {source: csv, path: /data/mails.csv, text: body, label: folder, encoding: cp1252},"
        " model: {kind: rnn, cell: lstm, width: 64}, loss: hinge}}"
    ),
    "text by the built-in trainer": builtin(
        "{languageModeling: {model: {preset: 8B}, data: {tokenBytes: 4, vocabulary: 128256, source: tokens, path: s},"
        " parallelism: {strategy: fsdp, tensor: 8}}}, env: [{name: LEPTON_CACHE, value: /data/cache}]"
    ),
}
