"""How a run computes: precisions, compilation, determinism, smoothing; and what is said where it cannot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trainer_runs as runs
from lepton_trainer.train import fp8, loop, tasks
from lepton_trainer.train.config import parse
from lepton_trainer.train.errors import OutOfMemory, UserError
from lepton_trainer.train.models.transformer import PRESETS, Transformer
from lepton_trainer.train.parallel import Engine

FEW: dict[str, Any] = {"steps": 6, "globalBatch": 8}


def losses(text: Path, out: Path, **training: Any) -> list[float]:
    loop.train(runs.language(text, out, training={**FEW, **training}))
    return list(runs.losses(out).values())


def test_bf16_follows_fp32_and_differs_from_it(text: Path, tmp_path: Path) -> None:
    exact, rounded = losses(text, tmp_path / "fp32", precision="fp32"), losses(text, tmp_path / "bf16", precision="bf16")
    assert exact != rounded
    assert max(abs(a - b) / a for a, b in zip(exact, rounded, strict=True)) < 0.02


def test_compiled_blocks_compute_what_plain_ones_do(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    plain = nn.Module.compile

    def compile_without_a_compiler(self: nn.Module) -> None:
        compiled.append(type(self).__name__)
        plain(self, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile_without_a_compiler)
    found = losses(text, tmp_path / "compiled", compile=True)
    assert compiled == ["Block"] * PRESETS["1M"].layers
    assert found == pytest.approx(losses(text, tmp_path / "plain"), rel=1e-5)


def test_deterministic_asks_torch_for_it(text: Path, tmp_path: Path) -> None:
    try:
        losses(text, tmp_path, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_label_smoothing_gives_its_part_of_the_target_to_all_classes() -> None:
    outputs, targets = torch.randn(5, 10), torch.arange(5)
    task = tasks.build(parse({"imageClassification": {"labelSmoothing": 0.2}}))
    log = torch.log_softmax(outputs, dim=1)
    expected = -(0.8 * log[torch.arange(5), targets] + 0.2 * log.mean(dim=1)).sum()
    assert float(task.loss(outputs, targets)) == pytest.approx(float(expected), rel=1e-6)


def test_fp8_without_such_a_device_is_refused_with_what_to_write(text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training.precision: no device here multiplies in fp8. Write bf16 or auto"):
        loop.train(runs.language(text, tmp_path, training={"precision": "fp8"}))


def test_fp8_without_torchao_is_refused_with_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match="fp8 needs torchao"):
        fp8.convert(Transformer(PRESETS["1M"], 256, 8), torch.device("cpu"), emulate=True)


def test_fp8_multiplies_the_matrices_of_the_blocks_and_learns_as_bf16_does() -> None:
    """Where torchao is installed; in its emulation, which computes with the same roundings on any device."""
    pytest.importorskip("torchao.float8")

    def course(eight: bool) -> list[float]:
        torch.manual_seed(0)
        model: nn.Module = Transformer(PRESETS["1M"], 256, 16)
        names = [name for name, _ in model.named_parameters()]
        if eight:
            model = fp8.convert(model, torch.device("cpu"), emulate=True)
            kinds = {name: type(module).__name__ for name, module in model.named_modules()}
            assert kinds["blocks.0.attention.query"] == kinds["blocks.3.feed.down"] == "Float8Linear" and kinds["head"] == "Linear"
            assert [name for name, _ in model.named_parameters()] == names, "checkpoints go over"
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
        tokens = torch.randint(256, (8, 17))
        found = []
        for _ in range(12):
            loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        return found

    eight, full = course(True), course(False)
    assert eight != full and eight[-1] < 0.9 * eight[0]
    assert eight == pytest.approx(full, rel=0.02)


def test_fp8_for_a_model_without_such_matrices_is_refused() -> None:
    pytest.importorskip("torchao.float8")
    with pytest.raises(UserError, match="no matrices that fp8 would speed up"):
        fp8.convert(nn.Conv2d(1, 1, 3), torch.device("cpu"), emulate=True)


@pytest.mark.parametrize("error", [None, MemoryError()])
def test_a_cpu_without_memory_is_told_what_to_lower(
    error: MemoryError | None, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch has a type for a full GPU alone; its CPU allocator's words are recognised."""

    def demanding(*_: Any) -> torch.Tensor:
        if error is not None:
            raise error
        return torch.empty(1 << 60)

    monkeypatch.setattr(Engine, "accumulate", demanding)
    with pytest.raises(OutOfMemory, match=r"out of memory at 8 samples per pass .*Write training.microBatch: 4; the result stays"):
        losses(text, tmp_path)


def test_other_errors_of_the_runtime_stay_what_they_are(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> torch.Tensor:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Engine, "accumulate", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        losses(text, tmp_path)
