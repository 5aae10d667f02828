"""A language model in other people's formats: what takes too long for a unit test."""

from __future__ import annotations

from pathlib import Path

import trainer_runs as runs
from lepton_trainer.train import loop
from lepton_trainer.train.delivery import manifest
from lepton_trainer.train.settings.delivery import Delivery, Export, Optimise
from lepton_trainer.train.storage import open_storage


def test_a_language_model_and_its_quantised_form_are_exported_exactly(tmp_path: Path) -> None:
    text = runs.text_folder(tmp_path / "text")
    for name, optimise in (("plain", None), ("quantised", Optimise(methods=["quantise"], tolerance=1.0))):
        config = runs.language(text, tmp_path / name, training={"steps": 2})
        loop.train(config, Delivery(export=Export(formats=["torchExport", "onnx"]), optimise=optimise))
        found = manifest.read(open_storage(str(tmp_path / name / "model")))
        assert found is not None and found["formats"].keys() == {"torchExport", "onnx"}
