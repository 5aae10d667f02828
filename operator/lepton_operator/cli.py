"""`lepton`: runs a job's manifest on this machine, and does there what kubectl does on a cluster."""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lepton_operator import conditions
from lepton_operator.local import columns, processes
from lepton_operator.local.follow import Follower
from lepton_operator.local.manifest import read_manifest
from lepton_operator.local.outfit import TRAINER_ROOT
from lepton_operator.local.store import RunDirectory, state_home
from lepton_operator.local.validation import ManifestError, validate
from lepton_operator.status import read_status
from lepton_operator.substrate import Gone

USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 done (of `run`: the job is Complete), 1 the job failed, 2 wrong use, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.do(options))
    except (ManifestError, Gone) as error:
        print(f"lepton: {error}", file=sys.stderr)
        return USAGE
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"lepton: {where}{error.strerror or error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lepton", description="Runs LeptonTrainingJobs on this machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a manifest's job; a job that was left running is taken up again")
    run.add_argument("file", type=Path)
    run.add_argument("--local", action="store_true", help="workers as processes of this machine (the one way for now)")
    run.add_argument("--fresh", action="store_true", help="begin anew: forget an earlier run and its checkpoints")
    run.add_argument("--logs", action="store_true", help="follow the workers' logs on a terminal, too")
    run.add_argument("--metrics-port", type=int, default=0, metavar="PORT", help="for /metrics on 127.0.0.1; 0: any free one")
    run.set_defaults(do=_run)

    get = commands.add_parser("get", help="show a job in a line, or all jobs of this machine")
    _names(get, optional=True)
    get.add_argument("-o", "--output", choices=["json"], help="the whole object, as kubectl prints it")
    get.set_defaults(do=_get)

    describe = commands.add_parser("describe", help="show a job's conditions, last failure and events")
    _names(describe)
    describe.set_defaults(do=_describe)

    logs = commands.add_parser("logs", help="print the workers' logs")
    _names(logs)
    logs.add_argument("-f", "--follow", action="store_true")
    logs.add_argument("--worker", type=int, metavar="INDEX")
    logs.set_defaults(do=_logs)

    scale = commands.add_parser("scale", help="change the number of workers while the job trains")
    _names(scale)
    scale.add_argument("--replicas", type=int, required=True)
    scale.set_defaults(do=_scale)

    serve = commands.add_parser("serve", help="serve a model that a job has exported: POST /predict")
    serve.add_argument("directory", help="of model.json; s3://BUCKET/PREFIX, too")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8080)
    serve.set_defaults(do=_serve)

    kill = commands.add_parser("kill", help="kill a worker, to see the others go on")
    _names(kill)
    kill.add_argument("--worker", type=int, required=True, metavar="INDEX")
    kill.add_argument("--signal", default="KILL", help="KILL (default), TERM, STOP, ...")
    kill.set_defaults(do=_kill)
    return parser


def _names(parser: argparse.ArgumentParser, optional: bool = False) -> None:
    parser.add_argument("name", help="of the job", nargs="?" if optional else None)
    parser.add_argument("-n", "--namespace", default="default")


def _run(options: argparse.Namespace) -> int:
    if not options.local:
        raise ManifestError(
            f"on a cluster a job is started by `kubectl apply -f {options.file}`; write `lepton run {options.file} --local` to run it here"
        )
    from lepton_operator.local.run import Options, run_locally  # servers and clients that the other commands do not wait for

    manifest = read_manifest(options.file)
    metadata = manifest.job["metadata"]
    run = RunDirectory(metadata["namespace"], metadata["name"])
    return run_locally(run, manifest, Options(options.metrics_port, options.logs, options.fresh))


def _existing(options: argparse.Namespace) -> tuple[RunDirectory, dict[str, Any]]:
    run = RunDirectory(options.namespace, options.name)
    body = run.read()
    if body is None:
        raise Gone(f"no job {options.namespace}/{options.name} was run on this machine (looked in {run.path})")
    return run, body


def _get(options: argparse.Namespace) -> int:
    if options.name is not None:
        bodies = [_existing(options)[1]]
    else:
        home = state_home() / options.namespace
        runs = [RunDirectory(options.namespace, path.parent.name) for path in sorted(home.glob("*/job.json"))]
        bodies = [body for run in runs if (body := run.read()) is not None]
    if options.output == "json":
        print(json.dumps(bodies[0] if options.name is not None else {"kind": "List", "apiVersion": "v1", "items": bodies}, indent=2))
    elif bodies:
        print(columns.table([columns.row(body) for body in bodies]))
    else:
        print(f"lepton: no job of namespace {options.namespace} was run on this machine", file=sys.stderr)
    return 0


def _describe(options: argparse.Namespace) -> int:
    run, body = _existing(options)
    status = read_status(body["status"])
    print(columns.table([columns.row(body)]))
    print(f"\nDirectory:  {run.path}" + ("" if run.running else "  (no `lepton run` has it now)"))
    if run.running:
        print(f"Metrics:    {run.metrics_file.read_text()}")
    print("Conditions:")
    for condition in status.conditions:
        print(f"  {condition.type:<12} {condition.status!s:<6} {condition.reason}: {condition.message}")
    for entry in status.evaluation.rounds if status.evaluation is not None else ():
        print(f"Round {entry.round}:    {entry.value or 'runs'}" + (f"  ({entry.changes})" if entry.changes else ""))
    if status.last_failure is not None:
        print(f"Last failure:\n  {status.last_failure.reason}: {status.last_failure.message}")
    print("Events:")
    print("".join(f"  {line}\n" for line in run.events_file.read_text().splitlines()), end="")
    return 0


def _logs(options: argparse.Namespace) -> int:
    run, _ = _existing(options)
    follower = Follower(run, options.worker, from_start=True)
    while True:
        body = run.read()
        ended = body is None or conditions.is_true(read_status(body["status"]).conditions, conditions.FINISHED)
        last = ended or not options.follow
        for line in follower.lines(last):
            print(line, flush=True)
        if last:
            return 0
        time.sleep(0.2)


def _scale(options: argparse.Namespace) -> int:
    run, body = _existing(options)
    wanted = json.loads(json.dumps(body))
    wanted["spec"]["workers"]["replicas"] = options.replicas
    wanted.pop("status", None)
    validate({key: wanted[key] for key in ("apiVersion", "kind", "metadata", "spec")}, body)

    def change(stored: dict[str, Any]) -> None:
        stored["spec"]["workers"]["replicas"] = options.replicas
        stored["metadata"]["generation"] += 1

    run.update(change)
    print(f"{options.namespace}/{options.name} scaled to {options.replicas}")
    return 0


def _serve(options: argparse.Namespace) -> int:
    """Becomes the server of the trainer image."""
    command = [sys.executable, "-m", "lepton_trainer", "serve", options.directory, "--host", options.host, "--port", str(options.port)]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), str(TRAINER_ROOT)]))
    sys.stdout.flush()
    os.execve(command[0], command, {**os.environ, "PYTHONPATH": path})


def _kill(options: argparse.Namespace) -> int:
    run, _ = _existing(options)
    try:
        number = signal.Signals[f"SIG{options.signal.upper().removeprefix('SIG')}"]
    except KeyError:
        raise ManifestError(f"--signal {options.signal}: no such signal; write KILL, TERM, STOP, ...") from None
    for name, record in run.records().items():
        identity = processes.Identity(int(record["pid"]), int(record["start"]))
        if int(record["index"]) == options.worker and "ended" not in record and identity.alive:
            processes.send(identity.pid, number)
            print(f"worker {options.worker} ({name}, pid {identity.pid}) was sent {number.name}")
            return 0
    raise Gone(f"no worker {options.worker} of {options.namespace}/{options.name} lives")


if __name__ == "__main__":
    sys.exit(main())
