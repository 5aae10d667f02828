"""Pictures of an evaluation, beside the model: which classes are taken for which, how well scores order, what went wrong.

    confusion.png, roc.png, precision-recall.png    classes; the curves where there are few
    residuals.png                                   numbers: truth and prediction, and how far they are apart
    ranks.png                                       which place the right one of many got
    wrong.png, wrong.txt                            the examples with the highest loss, as pictures or as lines

Drawn once, after the last step, from the outputs on the whole held-out split; which of them follows from the outputs' shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lepton_trainer.train.data import text
from lepton_trainer.train.data.images import Encoder as ImageEncoder
from lepton_trainer.train.tasks import Task

SHOWN = 24
"""Examples that are shown."""
CURVES = 10
"""The most classes that get curves of their own."""
NAMED = 40
"""The most classes whose names and counts still find room in a picture."""
Array = NDArray[Any]


def draw(task: Task, outputs: Tensor, targets: Tensor, directory: Path) -> None:
    """Everything that suits the task, each file written by one rename.

    Args:
        outputs, targets: of the held-out split, in its order, or of its beginning; on the CPU.
    Raises:
        RuntimeError: naming what could not be drawn; the rest is there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    problems = []
    for name, write in _looks(task, outputs, targets).items():
        partial = directory / f".{name}.new"
        try:
            write(partial)
            partial.replace(directory / name)
        except Exception as error:
            partial.unlink(missing_ok=True)
            problems.append(f"{name}: {type(error).__name__}: {error}")
    if problems:
        raise RuntimeError("; ".join(problems))


def _looks(task: Task, outputs: Tensor, targets: Tensor) -> dict[str, Callable[[Path], None]]:
    """The files to write, and how."""
    if outputs.dim() == 3:
        return {"wrong.txt": lambda file: _lines(file, _hard_windows(task, outputs, targets))}
    if targets.is_floating_point():
        return {"residuals.png": lambda file: _residuals(file, outputs.reshape(-1).numpy(), targets.numpy())}
    if task.preprocessing.get("objective") == "ranking":
        return {"ranks.png": lambda file: _ranks(file, outputs)}
    labels = [str(label) for label in task.preprocessing.get("labels") or task.preprocessing["classes"]]
    held = torch.nonzero(targets < len(labels))[:, 0]  # others were held out for another purpose, and are no test samples
    outputs, targets = outputs[held].float(), targets[held]
    truth, found = targets.numpy(), outputs.argmax(dim=1).numpy()
    chances = outputs.softmax(dim=1)
    losses = F.cross_entropy(outputs, targets, reduction="none").numpy()
    wrong = np.flatnonzero(truth != found)
    wrong = wrong[np.argsort(-losses[wrong], kind="stable")][:SHOWN]
    result: dict[str, Callable[[Path], None]] = {"confusion.png": lambda file: _confusion(file, truth, found, labels)}
    if len(labels) <= CURVES:
        result["roc.png"] = lambda file: _curves(file, outputs, truth, labels, "roc")
        result["precision-recall.png"] = lambda file: _curves(file, outputs, truth, labels, "precision-recall")
    told = [
        f"{held[i]}: is {labels[truth[i]]}, taken for {labels[found[i]]} ({chances[i, found[i]]:.2f}){_excerpt(task, int(held[i]))}"
        for i in wrong
    ]
    head = f"{int((truth != found).sum())} of {len(truth)} held-out samples are taken for another class; the {len(told)} surest of them:"
    result["wrong.txt"] = lambda file: _lines(file, [head, *told])
    if "mean" in task.preprocessing and "shape" in task.preprocessing and len(wrong):
        titles = [f"{labels[truth[i]]} as {labels[found[i]]}" for i in wrong]
        result["wrong.png"] = lambda file: _pictures(file, task, [int(held[i]) for i in wrong], titles)
    return result


def _excerpt(task: Task, index: int) -> str:
    """The beginning of a held-out sample, where the task has words for it."""
    tell = getattr(task, "excerpt", None)
    return f"\n    {' '.join(tell(index).split())}" if tell is not None else ""


def _lines(file: Path, lines: Sequence[str]) -> None:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _hard_windows(task: Task, outputs: Tensor, targets: Tensor) -> list[str]:
    """The windows of text with the highest mean loss, the hardest token of each named."""
    losses = F.cross_entropy(outputs.flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)
    means = losses.mean(dim=1)
    encoder = text.Encoder.from_json(task.preprocessing)

    def written(tokens: Tensor) -> str:
        numbers = tokens.tolist()
        return repr(encoder.decode(numbers)) if encoder.tokenizer else " ".join(map(str, numbers))

    lines = [f"the {min(SHOWN, len(means))} held-out windows with the highest loss; their mean is {means.mean():.3f} nats per token:"]
    for index in means.argsort(descending=True)[:SHOWN].tolist():
        hardest = int(losses[index].argmax())
        lines.append(f"{index}: {means[index]:.3f}, at {written(targets[index, hardest : hardest + 1])} {losses[index, hardest]:.2f}")
        lines.append(f"    {written(targets[index])}")
    return lines


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, file: Path) -> None:
    figure.savefig(file, format="png", dpi=110)


def confusion(truth: Array, found: Array, classes: int) -> Array:
    """How often each class (row) was taken for each (column), [classes, classes]."""
    return np.bincount(truth * classes + found, minlength=classes * classes).reshape(classes, classes)


def _confusion(file: Path, truth: Array, found: Array, labels: Sequence[str]) -> None:
    counts = confusion(truth, found, len(labels))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    edge = min(max(4.0, 0.45 * len(labels) + 2), 16.0)
    figure = _figure(edge + 1, edge)
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the class")
    if len(labels) <= NAMED:
        axis.set_xticks(range(len(labels)), labels, rotation=90)
        axis.set_yticks(range(len(labels)), labels)
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=7)
    axis.set_xlabel("taken for")
    axis.set_ylabel("is")
    _save(figure, file)


def roc(scores: Array, positive: Array) -> tuple[Array, Array]:
    """False and true positive rates at each threshold, from (0, 0) to (1, 1); equal scores are one step."""
    wrong, right = _stairs(scores, positive)
    return np.append(0.0, wrong / max(wrong[-1], 1)), np.append(0.0, right / max(right[-1], 1))


def precision_recall(scores: Array, positive: Array) -> tuple[Array, Array]:
    """Recall and precision at each threshold, from the strictest on."""
    wrong, right = _stairs(scores, positive)
    return right / max(right[-1], 1), right / (right + wrong)


def _stairs(scores: Array, positive: Array) -> tuple[Array, Array]:
    """How many negatives and positives score at least as high as each different score, from the highest on."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    right = np.cumsum(positive[order])[ends]
    return ends + 1.0 - right, right.astype(np.float64)


def _curves(file: Path, outputs: Tensor, truth: Array, labels: Sequence[str], kind: str) -> None:
    """One curve for the second of two classes, else each class against the others; classes that do not occur are left out."""
    figure = _figure(6.5, 6)
    axis = figure.subplots()
    for number in [1] if len(labels) == 2 else range(len(labels)):
        positive = truth == number
        if not positive.any() or positive.all():
            continue
        others = torch.cat([outputs[:, :number], outputs[:, number + 1 :]], dim=1)
        scores = (outputs[:, number] - others.logsumexp(dim=1)).numpy()  # log odds order as probabilities do, and do not saturate
        x, y = (roc if kind == "roc" else precision_recall)(scores, positive)
        if kind == "roc":
            area, name = float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)), "AUC"
        else:
            area, name = float(np.sum(np.diff(np.append(0.0, x)) * y)), "AP"
        axis.plot(x, y, label=f"{labels[number]}: {name} {area:.4f}", drawstyle="default" if kind == "roc" else "steps-pre")
    axis.set_xlabel("false positive rate" if kind == "roc" else "recall")
    axis.set_ylabel("true positive rate" if kind == "roc" else "precision")
    axis.set_xlim(-0.01, 1.01)
    axis.set_ylim(-0.01, 1.01)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right" if kind == "roc" else "lower left", fontsize=8)
    _save(figure, file)


def _residuals(file: Path, found: Array, truth: Array) -> None:
    errors = found - truth
    figure = _figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    left.hexbin(truth, found, gridsize=40, cmap="Blues", bins="log", mincnt=1)
    span = [float(truth.min()), float(truth.max())]
    left.plot(span, span, color="black", linewidth=0.8)
    left.set_xlabel("is")
    left.set_ylabel("predicted")
    right.hist(errors, bins=60)
    right.set_xlabel(f"predicted - is (mean {errors.mean():+.3f}, RMSE {np.sqrt((errors**2).mean()):.3f})")
    right.set_ylabel("samples")
    _save(figure, file)


def _ranks(file: Path, outputs: Tensor) -> None:
    ranks = 1 + (outputs[:, 1:] >= outputs[:, :1]).sum(dim=1).numpy()
    figure = _figure(7, 4.5)
    axis = figure.subplots()
    axis.hist(ranks, bins=np.arange(0.5, outputs.shape[1] + 1.5))
    axis.set_xlabel(f"place of the right one among {outputs.shape[1]} (median {np.median(ranks):g}, first ten {np.mean(ranks <= 10):.1%})")
    axis.set_ylabel("samples")
    _save(figure, file)


def _pictures(file: Path, task: Task, indices: Sequence[int], titles: Sequence[str]) -> None:
    encoder = ImageEncoder.from_json(task.preprocessing)
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in (encoder.mean, encoder.std))
    columns = 6
    rows = -(-len(indices) // columns)
    figure = _figure(1.6 * columns, 1.8 * rows)
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, index, title in zip(axes, indices, titles, strict=False):
        picture = np.clip(task.test_batch(index, index + 1)[0][0].numpy() * std + mean, 0.0, 1.0)
        axis.imshow(picture.transpose(1, 2, 0) if len(picture) == 3 else picture[0], cmap=None if len(picture) == 3 else "gray")
        axis.set_title(title, fontsize=8)
    _save(figure, file)
