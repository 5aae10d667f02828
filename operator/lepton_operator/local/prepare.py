"""Brings a manifest into its run directory: as a new job, or as a change of the one that is there, as `kubectl apply` would."""

import time
import uuid
from dataclasses import dataclass
from typing import Any

from lepton_operator import conditions
from lepton_operator.job import format_time, read_job
from lepton_operator.local import processes
from lepton_operator.local.manifest import Manifest
from lepton_operator.local.outfit import agent_directory, checkpoint_directory, outfit
from lepton_operator.local.store import RunDirectory
from lepton_operator.local.validation import validate
from lepton_operator.status import read_status
from lepton_trainer.protocol import names


@dataclass(frozen=True, slots=True)
class Prepared:
    goes_on: bool  # an unfinished job of before, as against a new one
    checkpoints: str  # where an earlier job's checkpoints lie that this new one will find; empty: there are none


def prepare(run: RunDirectory, manifest: Manifest, fresh: bool) -> Prepared:
    """Raises `ManifestError` where the change is one that the API server would refuse, or where a worker could not be made of it."""
    old = run.read()
    if old is not None and not fresh and not conditions.is_true(read_status(old["status"]).conditions, conditions.FINISHED):
        wanted = validate(manifest.job, old)
        outfit(run, manifest, read_job(wanted), "check", "check", 0)

        def change(body: dict[str, Any]) -> None:
            if body["spec"] != wanted["spec"]:
                body["spec"] = wanted["spec"]
                body["metadata"]["generation"] += 1

        run.update(change)
        return Prepared(True, "")
    outfit(run, manifest, read_job(manifest.job), "check", "check", 0)
    if old is not None:
        _end_leftovers(run, old)
    run.clear(checkpoints=fresh)
    metadata = {
        **manifest.job["metadata"],
        "uid": str(uuid.uuid4()),
        "generation": 1,
        "resourceVersion": "1",
        "creationTimestamp": format_time(time.time()),
    }
    run.create({**manifest.job, "metadata": metadata, "status": {}})
    folder = checkpoint_directory(run, read_job(manifest.job))
    found = folder is not None and folder.is_dir() and any(folder.iterdir())
    return Prepared(False, str(folder) if found else "")


def _end_leftovers(run: RunDirectory, old: dict[str, Any]) -> None:
    """`--fresh` while an earlier run's workers still live: they belong to a job that is forgotten now."""
    processes.sweep(f"{names.JOB_UID}={old['metadata']['uid']}")
    for record in run.records().values():
        processes.remove_tree(agent_directory(record["uid"]))
