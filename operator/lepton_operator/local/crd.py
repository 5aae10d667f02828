"""The CRD as local mode reads it: the same file that a cluster is given, so that a manifest meets the same rules in both places.

An installed wheel carries the file inside the package; a checkout has it in `crds/`, its only source.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

FILE = "leptontrainingjobs.training.lepton.ai.yaml"
Schema = dict[str, Any]


def crd_text() -> str:
    """The CRD's YAML. Raises `FileNotFoundError` where an installation lacks it."""
    packaged = files("lepton_operator") / "crds" / FILE
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[3] / "crds" / FILE).read_text(encoding="utf-8")


@cache
def crd() -> Schema:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loaded: Schema = yaml.load(crd_text(), Loader=loader)
    return loaded


@cache
def job_schema() -> Schema:
    """The OpenAPI schema of the stored version of a LeptonTrainingJob."""
    version = next(version for version in crd()["spec"]["versions"] if version["storage"])
    schema: Schema = version["schema"]["openAPIV3Schema"]
    return schema
