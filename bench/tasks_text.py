"""Text classification beside TF-IDF of 1,2-grams and LinearSVC, on the splits that Reuters R8 and 20 Newsgroups come with.

    python bench/tasks_text.py [--seeds 5] [--data r8 newsgroups] [--models ngrams rnn transformer svm]     -> bench/results/tasks-text.json

All models learn from the whole training split; a seed decides weights, order and hidden words. Settings are the trainer's defaults and
those of MODELS. What is not measured anew stays in the file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import machine
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "trainer_image")]
import texts  # noqa: E402
from lepton_trainer.train import loop  # noqa: E402
from lepton_trainer.train.config import parse  # noqa: E402

Row = tuple[str, int, dict[str, float], float]
"""Who, which seed, what was reached, in how many seconds from the prepared data to the last evaluation."""
RESULT = ROOT / "bench" / "results" / "tasks-text.json"
MODELS: dict[str, dict[str, Any]] = {
    "ngrams": {},
    "rnn": {"model": {"kind": "rnn"}},
    "transformer": {"model": {"kind": "transformer", "layers": 2}},
}
DATA = {"r8": "Reuters R8", "newsgroups": "20 Newsgroups"}


def run(seeds: Sequence[int], sources: Sequence[str] = tuple(DATA), models: Sequence[str] = (*MODELS, "svm")) -> Iterator[tuple[str, Row]]:
    """(data, row) as each is measured; the support vector machine has no seed that matters and is fitted once."""
    for source in sources:
        for name in models:
            if name == "svm":
                yield from ((DATA[source], row) for row in machines(source))
                continue
            for seed in seeds:
                yield DATA[source], (f"lepton, {name}", seed, *train(source, seed, MODELS[name]))


def train(source: str, seed: int, settings: dict[str, Any]) -> tuple[dict[str, float], float]:
    """The trainer's figures, and its seconds."""
    data = {"source": source, "path": str(texts.folder())}
    training = {"seed": seed, "evaluateEverySteps": 1_000_000, **settings.get("training", {})}
    with tempfile.TemporaryDirectory() as path:
        quiet = {"checkpoint": {"path": path, "everySteps": 1_000_000}, "output": {"plots": False, "everySteps": 1000}}
        config = parse({"textClassification": {**settings, "data": data, "training": training, **quiet}})
        begun = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = loop.train(config).figures
    return found, time.perf_counter() - begun


def machines(source: str) -> Iterator[Row]:
    """LinearSVC on sublinear TF-IDF: of n-grams that two texts hold, as ours, and of all."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics import f1_score
    from sklearn.svm import LinearSVC

    (learnt, classes), (held, truth) = texts.split(source, "train"), texts.split(source, "test")
    for name, least in (("LinearSVC", 2), ("LinearSVC, all n-grams", 1)):
        begun = time.perf_counter()
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=least)
        machine_ = LinearSVC(random_state=0).fit(vectorizer.fit_transform(learnt), classes)
        found = machine_.predict(vectorizer.transform(held))
        accuracy = float((found == truth).mean())
        yield name, 0, {"accuracy": accuracy, "macro_f1": float(f1_score(truth, found, average="macro"))}, time.perf_counter() - begun


def spread(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": round(statistics.fmean(values), 4), "min": round(min(values), 4), "max": round(max(values), 4), "n": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--models", nargs="+", choices=[*MODELS, "svm"], default=[*MODELS, "svm"])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    content: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {"data": {}}
    about = machine.facts()
    rows: dict[tuple[str, str], list[Row]] = {}
    for data, row in run(range(chosen.seeds), chosen.data, chosen.models):
        rows.setdefault((data, row[0]), []).append(row)
        mine = rows[data, row[0]]
        content["data"].setdefault(data, {})[row[0]] = {
            **{figure: spread([found[figure] for _, _, found, _ in mine]) for figure in ("accuracy", "macro_f1")},
            "seconds": spread([seconds for *_, seconds in mine]),
            "seeds": {str(seed): {figure: round(value, 4) for figure, value in found.items()} for _, seed, found, _ in mine},
            "about": about,
        }
        RESULT.write_text(json.dumps(content, indent=1) + "\n")
        print(data, row[0], row[1], {figure: round(value, 4) for figure, value in row[2].items()}, f"{row[3]:.1f} s", flush=True)


if __name__ == "__main__":
    main()
