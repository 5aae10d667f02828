"""`python -m lepton_trainer`: train a configuration, say what one may contain, serve what came out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lepton_trainer.protocol import names
from lepton_trainer.train import schema
from lepton_trainer.train.config import TASKS, Assignment, assignment, load
from lepton_trainer.train.errors import TrainerError, UserError
from lepton_trainer.train.settings.delivery import RESERVED


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 a mistake of the user's, 1 anything else, 143 stopped by SIGTERM after a checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m lepton_trainer", description="The built-in trainer of Lepton training jobs.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train", help="train a configuration, alone or under torchrun")
    command.add_argument("config", type=Path, nargs="?", help="a YAML file with one task; in a Lepton job, spec.trainer.builtin instead")
    commands.add_parser("tasks", help="list the tasks")
    command = commands.add_parser("explain", help="what a task's configuration, or what stands beside it, may contain")
    command.add_argument("task", choices=[*sorted(TASKS), *RESERVED])
    command.add_argument("--markdown", action="store_true", help="as the table that the manual holds")
    command = commands.add_parser("schema", help="the JSON Schema of a task's configuration, without references")
    command.add_argument("task", choices=[*sorted(TASKS), *RESERVED])
    command = commands.add_parser("serve", help="answer predictions of an exported model over HTTP")
    command.add_argument("directory", help="where the export wrote model.json: a directory or s3://bucket/prefix")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all")
    command.add_argument("--port", type=int, default=8080)
    chosen = parser.parse_args(arguments)
    if chosen.command == "tasks":
        for name, model in TASKS.items():
            print(f"{name:24}{(model.__doc__ or '').strip()}")
        return 0
    if chosen.command == "explain":
        print(schema.table(chosen.task) if chosen.markdown else schema.explain(chosen.task))
        return 0
    if chosen.command == "schema":
        print(json.dumps(schema.of(chosen.task), indent=2))
        return 0
    if chosen.command == "serve":
        return _serve(chosen.directory, chosen.host, chosen.port)
    return _train(chosen.config)


def _config(path: Path | None) -> Assignment:
    """Of the file, else of the job's `spec.trainer.builtin`."""
    if path is not None:
        return load(path)
    if names.BUILTIN not in os.environ:
        raise UserError(
            "no configuration", where="train", instead="Write python -m lepton_trainer train FILE; `explain TASK` shows what may be in it"
        )
    return assignment(json.loads(os.environ[names.BUILTIN]), "spec.trainer.builtin")


def _train(path: Path | None) -> int:
    first = os.environ.get("RANK", "0") == "0"
    try:
        given = _config(path)
        from lepton_trainer.train.loop import train  # torch only once the file is known to be good

        result = train(given.task, given.delivery)
    except TrainerError as error:
        if first or names.JOB_UID in os.environ:  # every rank raises the same, and Lepton quotes whichever ended first
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if not first:
        return 0 if result.finished or not result.terminated else 143
    shown: dict[str, Any] = {"finished": result.finished, "step": result.step, **result.figures}
    print(json.dumps(shown))
    return 0 if result.finished or not result.terminated else 143


def _serve(directory: str, host: str, port: int) -> int:
    try:
        from lepton_trainer.train.serving.server import serve

        serve(directory, host, port)
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
