"""The parts of the trainer that are functions of numbers: schedules, throughput, progress, the line of checkpoints, optimisers."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from lepton_trainer.train import optim, plots
from lepton_trainer.train.lineage import Point, line
from lepton_trainer.train.loop import judge
from lepton_trainer.train.optim import Muon, orthogonal
from lepton_trainer.train.progress import Progress, duration
from lepton_trainer.train.schedule import factor
from lepton_trainer.train.settings.shared import Optimizer, Schedule
from lepton_trainer.train.throughput import Rates, Throughput, peak_of


def test_cosine_rises_to_one_and_falls_towards_its_end() -> None:
    shape = [factor(Schedule(name="cosine", warmup=0.1, final=0.1), step, 100) for step in range(100)]
    assert shape[0] == pytest.approx(0.1) and shape[9] == 1.0 and max(shape) == 1.0
    assert all(a >= b for a, b in itertools.pairwise(shape[9:])) and 0.1 < shape[-1] < 0.102


def test_wsd_is_flat_until_its_linear_decay() -> None:
    shape = [factor(Schedule(name="wsd", warmup=0.0, decay=0.25, final=0.0), step, 100) for step in range(100)]
    assert shape[:76] == [1.0] * 76 and shape[76] == pytest.approx(0.96) and shape[-1] == pytest.approx(0.04)


def test_step_drops_and_constant_does_not() -> None:
    drops = [factor(Schedule(name="step", warmup=0.0, step_every=0.5, step_factor=0.1), step, 10) for step in range(10)]
    assert drops == pytest.approx([1.0] * 5 + [0.1] * 5)
    assert {factor(Schedule(name="constant", warmup=0.0), step, 10) for step in range(10)} == {1.0}


@pytest.mark.parametrize("name", ["cosine", "wsd", "step", "constant"])
@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_run_of_few_steps_has_a_rate_above_zero(name: str, total: int) -> None:
    assert all(0 < factor(Schedule.model_validate({"name": name}), step, total) <= 1 for step in range(total))


def test_throughput_counts_what_it_is_told() -> None:
    meter = Throughput(100.0, tokens=10, flops=2.0, peak=1000.0)
    rates = meter.interval(104.0, steps=8, samples=80, waited=1.0)
    assert rates == Rates(samples_per_second=20.0, tokens_per_second=200.0, step_seconds=0.5, data_wait=0.25, mfu=0.04)
    meter.skip(50.0)
    assert meter.interval(156.0, steps=10, samples=100, waited=1.0) == Rates(10.0, 100.0, 1.0, 0.0, 0.02)


def test_mfu_is_given_for_known_devices_only() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3") == 989e12 and peak_of("NVIDIA H100 PCIe") == 756e12 and peak_of("Some GPU") == 0.0
    assert Throughput(0.0, 1, 1.0, 0.0).interval(1.0, 1, 1, 0.0).mfu == 0.0


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere() -> None:
    rates = Rates(50.0, 0.0, 0.5, 0.0, 0.0)
    log, terminal = io.StringIO(), io.StringIO()
    Progress(log, 100, terminal=False).step(10, 0.5, 1.25, 0.001, rates)
    assert log.getvalue() == "step 10/100  epoch 0.50  loss 1.2500  lr 1.00e-03  50 samples/s  45 s left\n"
    bar = Progress(terminal, 100, terminal=True)
    bar.step(50, 0.5, 1.25, 0.001, rates)
    bar.step(100, 1.0, 1.0, 0.0, rates)
    bar.say("done")
    assert "\n" not in terminal.getvalue().rstrip("\n").rsplit("\r", 1)[0]
    assert terminal.getvalue().endswith("\ndone\n") and "[============>" in terminal.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_line_follows_the_generations_back() -> None:
    steps = {1: {10, 20, 30}, 2: {30, 40}, 3: {20, 25}}
    assert line(steps, {1: None, 2: Point(20, 1), 3: Point(10, 1)}) == [Point(25, 3), Point(20, 3), Point(10, 1)]
    assert line(steps, {1: None, 2: Point(20, 1), 3: Point(30, 2)}) == [
        Point(25, 3),
        Point(20, 3),
        Point(30, 2),
        Point(20, 1),
        Point(10, 1),
    ]


def test_what_a_stale_generation_commits_later_is_not_in_the_line() -> None:
    assert line({1: {10, 20}, 2: set()}, {1: None, 2: Point(10, 1)}) == [Point(10, 1)]


def test_a_generation_that_began_anew_ends_the_line() -> None:
    assert line({1: {10, 20}, 2: {5}}, {1: None, 2: None}) == [Point(5, 2)]


def test_an_unreadable_start_file_loses_nothing() -> None:
    assert line({1: {10}, 2: {20}}, {1: None}) == [Point(20, 2), Point(10, 1)]
    assert line({}, {}) == []


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_value_that_is_not_finite_is_never_the_best(mode: str) -> None:
    best, worse = judge(math.nan, None, 0, mode)
    assert best is None and worse == 1
    best, worse = judge(0.5, best, worse, mode)
    assert (best, worse) == (0.5, 0)
    assert judge(math.inf, best, worse, mode) == (0.5, 1)
    assert judge(0.6, best, worse, mode) == ((0.6, 0) if mode == "max" else (0.5, 1))


@pytest.mark.parametrize("shape", [(8, 8), (32, 8), (8, 32)])
def test_muon_makes_matrices_nearly_orthogonal(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    singular = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert singular.min() > 0.6 and singular.max() < 1.3


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_each_optimiser_learns_and_its_made_state_is_that_of_a_fresh_one(name: str) -> None:
    def problem(made: bool) -> tuple[float, float, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        model = nn.ModuleDict({"blocks": nn.Linear(6, 6), "head": nn.Linear(6, 1)})
        optimizers = optim.build(Optimizer.model_validate({"name": name, "learningRate": 0.02}), model)
        if made:
            optim.create_state(optimizers)
        optim.set_rate(optimizers, 1.0)
        x = torch.randn(64, 6)
        y = x.sum(1, keepdim=True)
        losses = []
        for _ in range(60):
            loss = (model["head"](torch.tanh(model["blocks"](x))) - y).square().mean()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses[0], losses[-1], dict(model.named_parameters())

    first, last, parameters = problem(made=True)
    assert last < 0.5 * first
    expected = problem(made=False)[2]
    assert all(torch.equal(parameters[key], expected[key]) for key in expected)


def test_muon_takes_hidden_matrices_and_adamw_the_rest() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(4, 6), "blocks": nn.Linear(6, 6), "head": nn.Linear(6, 4)})
    adamw, muon = optim.build(Optimizer(name="muon"), model)
    assert isinstance(muon, Muon) and [p.shape for g in muon.param_groups for p in g["params"]] == [(6, 6)]
    assert sum(len(group["params"]) for group in adamw.param_groups) == 4
    decayed = [p for g in adamw.param_groups if g["weight_decay"] for p in g["params"]]
    assert len(decayed) == 1 and decayed[0] is model["head"].weight


def test_the_average_follows_and_swapping_twice_changes_nothing() -> None:
    weight = nn.Parameter(torch.zeros(3))
    average = optim.Average({"w": weight}, 0.9)
    with torch.no_grad():
        weight.fill_(1.0)
    for step in range(1, 200):
        average.update(step)
    assert torch.allclose(average.shadow["w"], torch.ones(3), atol=1e-5)
    before = average.shadow["w"].clone()
    average.swap()
    assert torch.equal(weight, before)
    average.swap()
    assert torch.equal(weight, torch.ones(3)) and torch.equal(average.shadow["w"], before)


def test_curves_are_drawn(tmp_path: Path) -> None:
    history = [{"step": s, "loss": 1.0 / (s + 1), "learning_rate": 0.1} for s in range(5)] + [
        {"step": 4, "accuracy": 0.5, "test_loss": 1.0}
    ]
    plots.draw(history, "accuracy", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]
