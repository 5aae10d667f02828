"""The rounds of one job in a plan: which runs, what it has reached, and at its end whether another begins or the job is decided.

The round lies in status beside the generation and is won by the same write. A round is over when all members of a generation have
succeeded; that generation's number is kept with it, and what was reported up to it says nothing about the next round.
"""

from collections.abc import Iterator
from dataclasses import replace

from lepton_operator.decision import ending, rounds
from lepton_operator.decision.draft import Draft
from lepton_operator.decision.world import Made
from lepton_operator.status import EvaluationView, Exact, ProgressView, Round, Time
from lepton_trainer.protocol import messages, result
from lepton_trainer.protocol.frames import ProtocolError
from lepton_trainer.protocol.messages import Progress

NEW_ROUND = "NewRound"
"""Why the first generation of a further round is made."""
NAMED_LIMIT = 12
"""So many names of reported metrics are told."""


def begin(draft: Draft) -> None:
    """The first round of a job that has a requirement."""
    wanted = draft.job.evaluation
    if wanted is None or draft.status.evaluation is not None:
        return
    view = EvaluationView(metric=wanted.metric, target=Exact(wanted.target), mode=wanted.mode, round=1)
    draft.status = replace(draft.status, evaluation=_opened(draft, view))


def follow(draft: Draft) -> None:
    """The metric's last value in this round. Fails the job where an agent knows nothing of rounds: each would be the first one again."""
    view = draft.status.evaluation
    if draft.job.evaluation is None or view is None:
        return
    reported = next((p.metrics[view.metric] for p in _reports(draft) if view.metric in p.metrics), None)
    if reported is not None:
        draft.status = replace(draft.status, evaluation=replace(view, value=rounds.text_of(reported)))
    for j in draft.judgements:
        state = j.agent.state if j.agent is not None else None
        if state is not None and state.generation > view.past and state.phase == messages.RUNNING and not state.round:
            about = f"worker {j.member.worker} has an agent that does not know rounds: build its image from this version's trainer image"
            ending.fail(draft, "AgentTooOld", f"{about}, or leave spec.trainer.image out")
            return


def end(draft: Draft) -> None:
    """All members have succeeded: the job is decided, or the next round begins."""
    wanted, view, group = draft.job.evaluation, draft.status.evaluation, draft.memory.group
    assert wanted is not None and view is not None and group is not None
    if not view.value:
        ending.fail(draft, "MetricNotReported", _not_reported(draft, view))
        return
    root = draft.world.checkpoints
    met, best = rounds.is_met(wanted, view.value), rounds.best_of(draft.job, view, root)
    running = view.rounds[-1]
    steps = max((p.step for p in _reports(draft) if p.step is not None), default=draft.status.progress.step)
    over = replace(running, value=view.value, steps=steps, generation=group.number, completion_time=Time(draft.now.wall))
    view = replace(view, best=best, met=met, rounds=(*view.rounds[:-1], over))
    draft.status = replace(draft.status, evaluation=view)
    reached = f"{view.metric} is {view.value} in round {view.round}"
    if met:
        message = f"{reached}: {rounds.requirement(wanted)} was required"
        draft.event("Normal", "RequirementMet", message)
        ending.complete(draft, message)
    elif view.round >= wanted.max_rounds:
        ending.fail(draft, "RequirementNotMet", _not_met(draft, view))
    else:
        _next(draft, view, reached)


def between(draft: Draft) -> bool:
    """A round is over, and no generation of the next one is formed yet."""
    return 0 < draft.past == draft.status.rendezvous.generation


def _next(draft: Draft, view: EvaluationView, reached: str) -> None:
    view = _opened(draft, replace(view, round=view.round + 1, value=""))
    draft.status = replace(draft.status, evaluation=view, progress=ProgressView())
    draft.remember(top_step=None, made=Made(), stepped=False)
    assert draft.job.evaluation is not None
    changes = view.rounds[-1].changes or "nothing but LEPTON_ROUND"
    about = f"{reached}, and {rounds.requirement(draft.job.evaluation)} is required"
    draft.event("Normal", "RoundMissed", f"{about}: round {view.round} of {draft.job.evaluation.max_rounds} changes {changes}")


def _opened(draft: Draft, view: EvaluationView) -> EvaluationView:
    changes = rounds.words(draft.job, view, draft.world.checkpoints)
    return replace(view, rounds=(*view.rounds, Round(view.round, changes=changes, start_time=Time(draft.now.wall))))


def _reports(draft: Draft) -> Iterator[Progress]:
    """What was reported in this round: by members that are known, by rank, else in the last words of workers that have ended."""
    for j in draft.judgements:
        if j.agent is not None and draft.is_present(j.agent.progress):
            yield j.agent.progress
    for j in draft.judgements:
        if j.agent is None and j.worker is not None and j.worker.result:
            try:
                told = result.load(j.worker.result).progress
            except ProtocolError:
                continue
            if draft.is_present(told):
                yield told


def _not_reported(draft: Draft, view: EvaluationView) -> str:
    named = sorted({name for p in _reports(draft) for name in p.metrics})
    others = f"reported were {', '.join(named[:NAMED_LIMIT])}" if named else "no metric was reported"
    remedy = f'call report(metrics={{"{view.metric}": ...}}) before the script ends, or correct spec.evaluation.metric'
    return f"round {view.round} ended and {view.metric} was never reported ({others}): {remedy}"


def _not_met(draft: Draft, view: EvaluationView) -> str:
    wanted, best = draft.job.evaluation, view.best
    assert wanted is not None
    if best is None:
        reached = f"no round gave {view.metric} a finite value (the last: {view.value}): look at the loss, lower the learning rate"
    else:
        kept = f", kept in {best.path}" if best.path else ""
        reached = f"the best is {best.value} of round {best.round}{kept}"
    spent = "1 round is" if view.round == 1 else f"all {view.round} rounds are"
    remedy = "write a target that can be reached, more evaluation.maxRounds or other evaluation.onMiss in a new job"
    return f"{rounds.requirement(wanted)} is required, and {spent} spent: {reached}; {remedy}"
