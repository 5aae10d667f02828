"""Training in rounds until the requirement is met: what each round changes, what its ranks are given, which value is better.

Functions of the job and of `status.evaluation` alone, so that another leader answers the same; `evaluation` applies them to a plan.
"""

import json
import math
import posixpath
from dataclasses import dataclass

from lepton_operator.job import Evaluation, Job, Override, round_directory
from lepton_operator.status import Best, EvaluationView
from lepton_trainer.protocol import names

DEFAULT_SERIES = (Override(learning_rate=0.3, warm_start=True), Override(epochs=2.0), Override(epochs=2.0, width=1.5))
"""What the built-in trainer tries without `onMiss`: finer from where it is, then longer, then larger and longer."""
LARGEST_FACTOR, LARGEST_WIDTH = 1000.0, 64.0
"""The last override is applied once more in each further round; its factors stay within these, and one over these."""
VALUE_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Given:
    """What the ranks of a round are given beyond what their pods have."""

    env: dict[str, str]
    args: tuple[str, ...]


def override(job: Job, number: int) -> Override:
    """What round `number` changes against the job as written; the last override repeats, its factors once more each time."""
    assert job.evaluation is not None
    series = job.evaluation.on_miss or (DEFAULT_SERIES if job.trainer.builtin else ())
    if number < 2 or not series:
        return Override()
    item = series[min(number - 2, len(series) - 1)]
    times = max(1, number - len(series))
    return Override(
        learning_rate=_power(item.learning_rate, times),
        epochs=_power(item.epochs, times),
        width=_power(item.width, times, LARGEST_WIDTH),
        warm_start=item.warm_start,
        args=item.args,
        env=item.env,
    )


def given(job: Job, view: EvaluationView, root: str) -> Given:
    """`root`: the directory of the job's checkpoints as its workers see it; empty where it keeps none."""
    change, env = override(job, view.round), {names.ROUND: str(view.round)}
    if root:
        env[names.CHECKPOINT_DIR] = posixpath.join(root, round_directory(view.round))
    if job.trainer.builtin:
        factors = {"learningRate": change.learning_rate, "epochs": change.epochs, "width": change.width}
        told: dict[str, object] = {"number": view.round, **{name: factor for name, factor in factors.items() if factor != 1.0}}
        if source := _warm_source(change, view, root):
            told["warmStart"] = posixpath.join(root, round_directory(source))
        env[names.BUILTIN] = json.dumps({**json.loads(job.trainer.builtin), "round": told}, separators=(",", ":"))
    return Given(env | dict(change.env), change.args)


def words(job: Job, view: EvaluationView, root: str) -> str:
    """The changes of the round that `view` is in, for the user: "learningRate x0.3, warm start from round 1"."""
    change = override(job, view.round)
    factors = (("learningRate", change.learning_rate), ("epochs", change.epochs), ("width", change.width))
    parts = [f"{name} x{factor:.3g}" for name, factor in factors if factor != 1.0]
    parts += [f"args {' '.join(change.args)}"] if change.args else []
    parts += [f"env {', '.join(name for name, _ in change.env)}"] if change.env else []  # a value may be a secret
    parts += [f"warm start from round {source}"] if (source := _warm_source(change, view, root)) else []
    return ", ".join(parts)


def model_directory(job: Job, root: str, number: int) -> str:
    """Where round `number` (0: of a job without rounds) exports its model; empty where it exports none, or where nobody can know."""
    if not job.exports:
        return ""
    if job.export_path:
        return posixpath.join(job.export_path, round_directory(number)) if number else job.export_path
    return posixpath.join(root, round_directory(number), "model") if root else ""


def best_of(job: Job, view: EvaluationView, root: str) -> Best | None:
    """The best with the running round's value taken in; a value that is not finite is never best."""
    value = number_of(view.value)
    before = number_of(view.best.value) if view.best is not None else math.nan
    if not math.isfinite(value) or (view.best is not None and not _better(value, before, view.mode)):
        return view.best
    directory = posixpath.join(root, round_directory(view.round)) if root else ""
    return Best(view.round, view.value, model_directory(job, root, view.round) or directory)


def is_met(evaluation: Evaluation, text: str) -> bool:
    """Whether the requirement is met by this value; NaN and the infinities meet none."""
    value = number_of(text)
    if not math.isfinite(value):
        return False
    return value >= evaluation.target if evaluation.mode == "max" else value <= evaluation.target


def number_of(text: str) -> float:
    """The number of a value as status or an agent writes it; NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def text_of(reported: str) -> str:
    """A reported number as status shows it: never a bare NaN, which JSON does not have."""
    value = number_of(reported)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Inf" if value > 0 else "-Inf"
    return f"{value:.{VALUE_DIGITS}g}"


def requirement(evaluation: Evaluation) -> str:
    """In words: "accuracy at least 0.97"."""
    return f"{evaluation.metric} {'at least' if evaluation.mode == 'max' else 'at most'} {evaluation.target:g}"


def _warm_source(change: Override, view: EvaluationView, root: str) -> int:
    """The round whose weights this one begins with: the best, of which there must be checkpoints; 0: none."""
    return view.best.round if change.warm_start and root and view.best is not None else 0


def _power(factor: float, times: int, largest: float = LARGEST_FACTOR) -> float:
    """`factor` applied so many times, as few digits as tell it."""
    exponent = times * math.log(factor) if factor > 0 else 0.0
    limit = math.log(largest)
    return float(f"{math.exp(max(-limit, min(limit, exponent))):.6g}") if times > 1 else factor


def _better(value: float, than: float, mode: str) -> bool:
    return value > than if mode == "max" else value < than
