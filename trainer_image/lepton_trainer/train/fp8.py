"""`training.precision: fp8`: the matrices of the blocks multiply in 8 bits, by torchao, where both it and such a GPU exist.

Weights, optimiser and checkpoint stay as they are; what is not a matrix product of the blocks runs in bf16.
"""

from __future__ import annotations

import torch
from torch import nn

from lepton_trainer.train.errors import UserError

CAPABILITY = (8, 9)
"""Of the first CUDA devices whose tensor cores multiply in fp8."""


def convert(model: nn.Module, device: torch.device, *, emulate: bool = False) -> nn.Module:
    """The model with its blocks' linear layers replaced, in place; `emulate` computes as such a GPU would, anywhere and slowly.

    Raises:
        UserError: the device, the image or the model has nothing to do it with.
    """
    if not emulate and (device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY):
        raise _cannot("no device here multiplies in fp8", "Write bf16 or auto")
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise _cannot("fp8 needs torchao, which this image does not have", "Write bf16 or auto, or use an image with torchao") from None
    chosen = [name for name, module in model.named_modules() if _suits(module, name)]
    if not chosen:
        raise _cannot("this model has no matrices that fp8 would speed up", "Write bf16 or auto")
    convert_to_float8_training(model, config=Float8LinearConfig(emulate=emulate), module_filter_fn=_suits)
    return model


def _suits(module: nn.Module, name: str) -> bool:
    """Linear layers of the blocks whose sides the hardware takes."""
    return name.startswith("blocks.") and isinstance(module, nn.Linear) and module.in_features % 16 == 0 and module.out_features % 16 == 0


def _cannot(what: str, instead: str) -> UserError:
    return UserError(what, where="training.precision", instead=instead)
