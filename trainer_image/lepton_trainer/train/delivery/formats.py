"""The model in other people's formats, each one loaded again and compared with the original on held-out samples before it counts."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lepton_trainer.train.errors import TrainerError
from lepton_trainer.train.settings.delivery import Format
from lepton_trainer.train.tasks import Task

SAMPLES = 64
TOLERANCE = 1e-3
"""Of an output, relative to the largest one: what another library's order of additions may change."""
FILES: dict[Format, str] = {"torchExport": "model.pt2", "onnx": "model.onnx"}


class Inexact(TrainerError):
    """The format could not be made, or does not give the original's outputs."""


def write(kind: Format, model: nn.Module, task: Task, folder: Path) -> dict[str, Any]:
    """Write `model` (on the CPU, in evaluation mode) in a format, and check it.

    Returns:
        file, samples compared, the largest difference, and the tolerance.
    Raises:
        Inexact: it does not work with this model or these libraries.
    """
    file = folder / FILES[kind]
    inputs, _ = task.test_batch(0, min(SAMPLES, task.test_size))
    try:
        with torch.inference_mode():
            wanted = model(inputs).float()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = (_torch_export if kind == "torchExport" else _onnx)(model, inputs, file)
    except Exception as error:  # exporters fail in as many ways as there are operators
        lines = str(error).strip().splitlines() or [""]
        raise Inexact(f"{kind} cannot be made: {type(error).__name__}: {lines[0][:200]}") from None
    difference = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-12))
    if not difference <= TOLERANCE:
        raise Inexact(f"{kind} differs from the original by {difference:.2g} of the largest output, more than {TOLERANCE:g}")
    return {"file": file.name, "samples": len(inputs), "difference": difference, "tolerance": TOLERANCE}


def _torch_export(model: nn.Module, inputs: Tensor, file: Path) -> Tensor:
    program = torch.export.export(model, (inputs[:2],), dynamic_shapes=_free(inputs))
    torch.export.save(program, file)
    with torch.inference_mode():
        found: Tensor = torch.export.load(file).module()(inputs)
    return found.float()


def _free(inputs: Tensor) -> tuple[dict[int, Any]]:
    """Which sizes may be others than in the example: how many samples, and of words and candidates how long each is."""
    if inputs.is_floating_point():
        return ({0: torch.export.Dim("batch", min=1)},)
    return (dict.fromkeys(range(inputs.dim()), torch.export.Dim.AUTO),)


def _onnx(model: nn.Module, inputs: Tensor, file: Path) -> Tensor:
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.onnx.export(
        model,
        (inputs[:2],),
        file,
        dynamo=True,
        external_data=False,
        input_names=["inputs"],
        output_names=["outputs"],
        dynamic_shapes=_free(inputs),
        verbose=False,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"inputs": inputs.numpy()})[0]).float()
