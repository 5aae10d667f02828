"""MFU of the trainer's own engine and optimiser on one GPU: GPT-2's sizes and Llama-shaped ones, bf16, compiled by block.

    python bench/gpu.py [NAME ...]        -> bench/results/gpu.json

Each model first passes a gate: over 20 steps on the same tokens its loss may differ from eager fp32 by 2 % at most (models whose fp32
state does not fit are gated at two layers). The optimiser is fused AdamW with fp32 weights and moments, 16 bytes per weight; a model
that does not fit the device with that is named and left out. Where torchao is installed and the GPU multiplies in fp8, the same follows in
fp8, its MFU against the peak of bf16. Without a GPU the same code runs at a small size on the CPU, and its
figures are named as the CPU's; there is no MFU then.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
import trainer as bench
from torch import Tensor

from lepton_trainer.train import fp8, optim
from lepton_trainer.train.models.transformer import PRESETS, Shape, Transformer, flops_per_token
from lepton_trainer.train.parallel import Engine, Layout
from lepton_trainer.train.ranks import Place
from lepton_trainer.train.settings.language_modeling import TextOptimizer
from lepton_trainer.train.throughput import peak_of

MODELS: dict[str, tuple[Shape, int, int, int]] = {  # shape, vocabulary, context, sequences per pass
    "GPT-2 124M": (Shape(768, 12, 12, 12, 2048), 50304, 1024, 32),
    "GPT-2 1.56B": (Shape(1600, 48, 25, 25, 4288), 50304, 1024, 8),
    "Llama 1B": (PRESETS["1B"], 128256, 2048, 4),
    "Llama 3B": (PRESETS["3B"], 128256, 2048, 2),
    "Llama 8B": (PRESETS["8B"], 128256, 2048, 1),
}
SMALL = {"CPU 1M": (PRESETS["1M"], 1024, 64, 8)}
GATE_STEPS, GATE, ROUNDS, STEPS = 20, 0.02, 10, 5


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1).float(), targets.flatten(), reduction="sum")


class Training:
    """A model with its optimiser, stepping over the same few batches of random tokens."""

    def __init__(self, shape: Shape, vocabulary: int, context: int, batch: int, device: torch.device, precision: str) -> None:
        torch.manual_seed(0)
        tokens = torch.randint(vocabulary, (4, batch, context + 1))
        self.batches = [(t[:, :-1].contiguous(), t[:, 1:].contiguous()) for t in tokens]
        with device:
            model = Transformer(shape, vocabulary, context)
        if precision == "fp8":
            fp8.convert(model, device)
        compiled = precision != "fp32" and device.type == "cuda"
        dtype = torch.bfloat16 if precision != "fp32" else None
        self.engine = Engine(model, Layout(1, 1, 1, False), Place(0, 1, device), loss, tokens[0][:1, :-1], dtype, compiled)
        self.optimizers = optim.build(TextOptimizer(learning_rate=3e-4), self.engine.model)
        self.units = float(batch * context)

    def step(self, number: int) -> Tensor:
        inputs, targets = self.batches[number % len(self.batches)]
        total = self.engine.accumulate(inputs, targets, 1, len(inputs), self.units)
        self.engine.clip(self.engine.norm(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return total / self.units


def gate(shape: Shape, vocabulary: int, context: int, batch: int, device: torch.device, precision: str) -> float:
    """The largest relative difference between the fast and the exact loss."""
    small = replace(shape, layers=min(shape.layers, 2)) if shape.width > 1024 else shape
    courses = []
    for tried in (precision, "fp32"):
        training = Training(small, vocabulary, context, min(batch, 4), device, tried)
        courses.append([float(training.step(number)) for number in range(GATE_STEPS)])
        del training
    return max(abs(a - b) / b for a, b in zip(*courses, strict=True))


def precisions(device: torch.device) -> list[str]:
    """Those that this device and this installation have."""
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= fp8.CAPABILITY
    return ["bf16", "fp8"] if able and importlib.util.find_spec("torchao") else ["bf16"]


def measure(name: str, device: torch.device, precision: str) -> dict[str, Any]:
    shape, vocabulary, context, batch = (MODELS | SMALL)[name]
    with torch.device("meta"):
        weights = sum(p.numel() for p in Transformer(shape, vocabulary, context).parameters())
    result: dict[str, Any] = {"weights": weights, "context": context, "batch": batch, "optimizer": "AdamW, fp32 weights and moments"}
    if device.type == "cuda" and 16 * weights > torch.cuda.get_device_properties(device).total_memory * 0.9:
        return {**result, "left out": f"{16 * weights / 1e9:.0f} GB of weights, gradients and moments do not fit"}
    result["loss_gate"] = gate(shape, vocabulary, context, batch, device, precision)
    if result["loss_gate"] > GATE:
        return {**result, "left out": "the loss left the gate, so speed means nothing"}
    training = Training(shape, vocabulary, context, batch, device, precision)

    def rate() -> float:
        begun = time.perf_counter()
        for number in range(STEPS):
            last = training.step(number)
        float(last)  # waits for the device
        return STEPS * batch * context / (time.perf_counter() - begun)

    raw = bench.rounds({"tokens per second": rate}, ROUNDS)["tokens per second"]
    result["tokens_per_second"] = bench.summary(raw)
    if device.type == "cuda" and (peak := peak_of(torch.cuda.get_device_name(device))):
        result["mfu"] = result["tokens_per_second"]["median"] * flops_per_token(shape, vocabulary, context) / peak
    return {**result, "raw": raw}


def main(wanted: list[str]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = wanted or list(MODELS if device.type == "cuda" else SMALL)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU here: a small size on the CPU, no MFU"
    models = {name: {precision: measure(name, device, precision) for precision in precisions(device)} for name in names}
    bench.write("gpu", {"device": where, "models": models})


if __name__ == "__main__":
    main(sys.argv[1:])
