"""Writes `spec.trainer.builtin` of the CRD from the trainer's own models: `make crd`, after a change of `train/settings/`.

The block between the two marks is replaced as a whole. Defaults are told in the descriptions and not set by the API server: a job keeps
what its user wrote, and an image of another version keeps its own defaults.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from lepton_trainer.train import schema
from lepton_trainer.train.config import TASKS

CRD = Path(__file__).parents[1] / "crds" / "leptontrainingjobs.training.lepton.ai.yaml"
BEGIN = "                    # Made by `make crd` from trainer_image/lepton_trainer/train/settings/; the next lines are not to be edited.\n"
END = "                    # The end of what `make crd` makes.\n"
INDENT = " " * 20
Json = dict[str, Any]


def builtin() -> Json:
    """The structural schema of `spec.trainer.builtin`."""
    given = ", ".join(f"has(self.{task})" for task in TASKS)
    one = f"write {' or '.join(TASKS)} with its settings, or {{}} for its defaults"
    return {
        "description": (
            "The trainer that the trainer image brings, instead of command: exactly one task with its settings, all of which "
            "have defaults. Its checkpoints go where spec.checkpoint says."
        ),
        "type": "object",
        "x-kubernetes-validations": [
            {"rule": f"[{given}].filter(one, one).size() == 1", "message": f"builtin names exactly one task: {one}"}
        ],
        "properties": {task: schema.structural(task) for task in TASKS},
    }


def text(node: Json, name: str, indent: str) -> str:
    """`name: node` as YAML: a task in block style, a group of its settings on one line, because each indented line counts."""
    if not any("properties" in inner for inner in node.get("properties", {}).values()):
        return f"{indent}{name}: {_line(node)}\n"
    parts = [f"{indent}{name}:\n"]
    for key, value in node.items():
        if key == "properties":
            parts += [f"{indent} properties:\n", *(text(part, inner, indent + "  ") for inner, part in value.items())]
        elif isinstance(value, list):
            parts += [f"{indent} {key}:\n", *(f"{indent}  - {_line(entry)}\n" for entry in value)]
        else:
            parts.append(f"{indent} {key}: {_line(value)}\n")
    return "".join(parts)


def _line(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1_000_000).removesuffix("...\n").strip()


def written(crd: str) -> str:
    """The CRD's text with the block made anew."""
    block = BEGIN + text(builtin(), "builtin", INDENT) + END
    replaced, count = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: block, crd, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{CRD}: the marks of the block that is made are not there")
    return replaced


if __name__ == "__main__":
    CRD.write_text(written(CRD.read_text()))
    print(f"wrote {CRD}")
