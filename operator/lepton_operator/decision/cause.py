"""Who is to blame, in one sentence that a user can act on: `status.lastFailure`.

The first process that failed on its own is the cause. One that failed inside a collective is a witness: it counts only when nobody else
failed or was lost at about the same time.
"""

import signal
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from lepton_operator.decision.evidence import Judgement, Verdict
from lepton_operator.decision.generation import Generation
from lepton_operator.decision.policies import MISCONFIGURED
from lepton_operator.job import Job
from lepton_operator.status import LastFailure, MicroTime
from lepton_operator.worker import Worker
from lepton_trainer.protocol.messages import ProcessExit

LOG_TAIL_LIMIT = 2048
MESSAGE_LIMIT = 2048
NOBODY_SEEN: Mapping[str, Worker] = MappingProxyType({})
MISTAKE = 2
"""The exit code of the built-in trainer for what its user has to change."""
UNCERTAIN = frozenset({"ConnectionLost", "AgentSilent", "AgentNotBack"})
"""Nobody saw these go: one that was seen going at the same time is the likelier cause."""


def find_cause(
    job: Job, generation: Generation, judgements: Sequence[Judgement], wall: float, seen: Mapping[str, Worker] = NOBODY_SEEN
) -> tuple[Judgement, LastFailure]:
    """The judgement that broke `generation` and its description. At least one judgement must be bad.

    `seen`: the members' pods as they were last seen, by UID: one that is deleted is named all the same.
    """
    culprit = _culprit(judgements)
    first = _first_exit(culprit)
    name, node = _place(job, culprit, seen)
    if culprit.verdict is Verdict.FAILED and first is not None:
        return culprit, _of_process(job, culprit, first, wall, name, node)
    offset = next((order.rank_offset for order in generation.orders() if order.uid == culprit.member.uid), None)
    where = f" on node {node}" if node else ""
    return culprit, LastFailure(
        time=MicroTime(wall),
        worker=name,
        rank=offset,
        node=node,
        reason=culprit.reason,
        exit_code=culprit.worker.exit_code if culprit.worker else None,
        signal=culprit.worker.signal if culprit.worker else None,
        message=_short(f"worker {culprit.member.worker} ({name}{where}) was lost: {culprit.message}{_remedy_of_loss(culprit.reason)}"),
    )


def of_worker(job: Job, worker: Worker, wall: float) -> LastFailure:
    """A worker whose agent never joined: its container could not start, or ended at once."""
    what = worker.trouble_message or (
        f"its container was ended by signal {worker.signal}" if worker.signal else f"its container ended with exit code {worker.exit_code}"
    )
    return LastFailure(
        time=MicroTime(wall),
        worker=worker.name,
        node=worker.node,
        reason=worker.trouble or ("OOMKilled" if worker.oom_killed else "WorkerFailedToStart"),
        exit_code=worker.exit_code,
        signal=worker.signal,
        message=_short(f"worker {worker.index} ({worker.name}) ended before it joined: {what}", f"; see {_logs(job, worker.name)}"),
    )


def _culprit(judgements: Sequence[Judgement]) -> Judgement:
    failed = sorted((j for j in judgements if j.verdict is Verdict.FAILED), key=lambda j: j.agent.failed_order if j.agent else 0)
    own = [j for j in failed if (exit_ := _first_exit(j)) is None or not exit_.witness]
    lost = sorted((j for j in judgements if j.verdict is Verdict.LOST), key=lambda j: j.reason in UNCERTAIN)
    departed = [j for j in judgements if j.verdict in (Verdict.LEAVING, Verdict.STOPPED) and j.reason]
    candidates = [*own, *lost, *departed, *failed]
    if not candidates:
        raise ValueError("no member failed or was lost")
    return candidates[0]


def _first_exit(judgement: Judgement) -> ProcessExit | None:
    exits = judgement.agent.state.exits if judgement.agent else ()
    return next((e for e in exits if e.exit_code != 0), None)


def _place(job: Job, culprit: Judgement, seen: Mapping[str, Worker]) -> tuple[str, str]:
    """(name, node) of its pod."""
    worker = culprit.worker or seen.get(culprit.member.uid)
    return (worker.name, worker.node) if worker is not None else (f"{job.name}-{culprit.member.worker}", "")


def _of_process(job: Job, culprit: Judgement, exit_: ProcessExit, wall: float, name: str, node: str) -> LastFailure:
    where = f"worker {culprit.member.worker}, {name}" + (f" on node {node}" if node else "")
    if exit_.oom_killed:
        lower = "set a smaller training.microBatch" if job.trainer.builtin else "lower the batch size"
        reason, how = "OOMKilled", f"was killed: out of memory; raise workers.resources.limits.memory or {lower}"
    elif exit_.signal is not None:
        reason, how = "ProcessSignalled", f"was ended by signal {exit_.signal} ({_signal_name(exit_.signal)})"
    elif exit_.exit_code in (126, 127):
        reason, how = "CommandNotFound", "could not be started; correct spec.trainer.command"
    elif job.trainer.builtin and exit_.exit_code == MISTAKE:
        reason, how = MISCONFIGURED, "cannot go on with what it was given"
    else:
        reason, how = "ProcessFailed", f"ended with exit code {exit_.exit_code}"
    said = f": {exit_.error}" if exit_.error else ""
    return LastFailure(
        time=MicroTime(wall),
        worker=name,
        rank=exit_.rank,
        node=node,
        reason=reason,
        exit_code=exit_.exit_code,
        signal=exit_.signal,
        message=_short(f"rank {exit_.rank} ({where}) {how}{said}", f"; see {_logs(job, name)}"),
        log_tail=(exit_.traceback or exit_.log_tail)[-LOG_TAIL_LIMIT:],
    )


def _short(text: str, tail: str = "") -> str:
    """The tail, which says what to do, is never cut off."""
    return text[: MESSAGE_LIMIT - len(tail)] + tail


def _logs(job: Job, worker: str) -> str:
    return f"`kubectl logs -n {job.namespace} {worker}`"


def _remedy_of_loss(reason: str) -> str:
    return {
        "OOMKilled": "; raise workers.resources.limits.memory or lower the batch size",
        "Evicted": "; ask for what the pod really uses in workers.resources.requests",
        "AgentNotBack": "; is the coordinator reachable from the pods (NetworkPolicy)?",
    }.get(reason, "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
