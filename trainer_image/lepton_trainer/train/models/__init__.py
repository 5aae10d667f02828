"""Plain modules: no process group, no mesh, no sharding in any of them. Parallelism is applied from outside, by `parallel.py`.

`build` makes one from its description and the encoder, both plain JSON: what a task trains and what a server loads are the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def build(description: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> nn.Module:
    """The module that `description` (`Task.description`) names, newly initialised, for what `Task.preprocessing` makes of the data.

    Raises:
        ValueError: it names a kind that this version does not know.
    """
    sizes = {name: value for name, value in description.items() if name not in ("kind", "int8")}
    if description["kind"] == "resnet":
        from lepton_trainer.train.models.resnet import ResNet

        return ResNet(**sizes)
    if description["kind"] == "transformer":
        from lepton_trainer.train.models.transformer import Shape, Transformer

        return Transformer(Shape(**sizes.pop("shape")), **sizes)
    if description["kind"] in ("ngrams", "recurrent", "textEncoder"):
        from lepton_trainer.train.models.text import NGrams, Recurrent, TextEncoder

        kinds: dict[str, type[nn.Module]] = {"ngrams": NGrams, "recurrent": Recurrent, "textEncoder": TextEncoder}
        return kinds[description["kind"]](**sizes)
    if description["kind"] == "tabular":
        from lepton_trainer.train.models import tabular

        return tabular.fitting(preprocessing, **sizes)
    if description["kind"] in ("factorization", "dlrm"):
        from lepton_trainer.train.models import recommender

        return recommender.fitting(preprocessing, description["kind"], **sizes)
    raise ValueError(f"a model of kind {description['kind']!r} is unknown here")


def restored(description: Mapping[str, Any], preprocessing: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module with these weights, in evaluation mode. Where pruning has made a layer narrower, the weights' shapes are believed.

    Raises:
        ValueError: a tensor is missing, is left over, or has another number of dimensions.
    """
    model = build(description, preprocessing)
    if description.get("int8"):
        from lepton_trainer.train.models import int8

        int8.replace(model, description["int8"])
    own = model.state_dict()
    if own.keys() != tensors.keys():
        differing = sorted(own.keys() ^ tensors.keys())
        raise ValueError(f"the weights are of another model: {', '.join(differing[:3])}")
    for name, tensor in tensors.items():
        if own[name].dim() != tensor.dim():
            raise ValueError(f"the weights are of another model: {name} has {tensor.dim()} dimensions, not {own[name].dim()}")
        place(model, name, tensor)
    return model.eval()


def place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor into the model under its name, with its own shape."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
    else:
        setattr(module, leaf, tensor)
    if isinstance(module, nn.Linear) and leaf == "weight":
        module.out_features, module.in_features = tensor.shape
    elif isinstance(module, nn.Conv2d) and leaf == "weight":
        module.out_channels, module.in_channels = tensor.shape[:2]
    elif isinstance(module, nn.BatchNorm2d) and leaf == "running_mean":
        module.num_features = len(tensor)
