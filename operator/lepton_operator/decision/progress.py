"""What the ranks report, folded into the job's status: progress, the first step of a generation, and what the job's seconds went to."""

import math
from dataclasses import replace

from lepton_operator import conditions
from lepton_operator.decision import evaluation, goodput
from lepton_operator.decision.draft import Draft
from lepton_operator.decision.view import duration, loss_text, rate, running, since_creation
from lepton_operator.decision.world import Made
from lepton_operator.decision.writes import PROGRESS_SCHEDULE
from lepton_operator.status import CheckpointView, MicroTime, ProgressView, Time
from lepton_trainer.protocol.messages import Progress

GAP_SECONDS = 0.5
"""So much less than the wall clock's time on the account of a job means that no leader looked meanwhile."""


def follow(draft: Draft) -> None:
    """Progress as the lowest rank reports it, and the end of an interruption."""
    speaker = draft.first_speaker()
    if speaker is not None:
        first = draft.memory.counters.fresh and draft.observed.progress.step is None
        connected = [j.agent for j in draft.judgements if j.agent is not None and j.agent.connected]
        counted = draft.memory.counters.speaker([speaker, *connected]) or speaker
        draft.remember(counters=draft.memory.counters.observe(counted, fresh=first))
        if speaker.progress.step is not None and draft.is_present(speaker.progress):
            _progress(draft, speaker.progress)
    _first_step(draft, speaker.progress if speaker is not None else Progress())


def count_again(draft: Draft) -> None:
    """Books the steps that each generation computes again: from its first step to the last one of the generation before that made any.

    What a generation's members reported may come after the next one was decided: survivors tell it when they prepare that.
    """
    group = draft.memory.group
    told = [agent.progress for agent in draft.world.agents if agent.progress.generation and agent.progress.step is not None]
    reports = [progress for progress in told if draft.is_present(progress)]
    for number in sorted({progress.generation for progress in reports}):
        told = [progress for progress in reports if progress.generation == number]
        last = max(progress.step or 0 for progress in told)
        begun = next((progress for progress in told if progress.first_step is not None), None)
        made = draft.memory.made
        if number == made.generation:
            draft.remember(made=replace(made, step=max(last, made.step)))
        elif number > made.generation and begun is not None:
            again = max(0, made.step - (begun.first_step or 0) + 1) if made.generation else 0
            samples = round(again * begun.samples_total / begun.steps_total) if begun.steps_total else 0
            draft.remember(made=Made(number, last, again), account=draft.memory.account.recomputed(again, samples))
        if group is not None and number < group.number:
            draft.remember(top_step=max(last, draft.memory.top_step or 0))


def account(draft: Draft) -> None:
    """Books the time since the last look, and says what goes on from here."""
    memory = draft.memory
    category = "" if draft.status.state in ("Complete", "Failed") else _category(draft)
    kept = memory.account
    if not kept.current and draft.observed.start_time:
        unseen = draft.now.wall - draft.observed.start_time - sum(kept.seconds.values())
        if unseen > GAP_SECONDS:
            kept = kept.add(goodput.PRODUCTIVE if _stepped_unseen(draft) else goodput.UNOBSERVED, unseen)
    draft.remember(account=kept.advance(category, draft.now.mono))
    draft.status = replace(draft.status, goodput=draft.memory.account.view())


def _progress(draft: Draft, seen: Progress) -> None:
    group, step, total = draft.memory.group, seen.step or 0, seen.total_steps
    eta = None
    if total and seen.step_seconds and group is not None and seen.generation == group.number:
        eta = max(0, total - step) * seen.step_seconds
    tokens, samples = rate(seen.tokens_per_second), rate(seen.samples_per_second)
    draft.status = replace(
        draft.status,
        progress=ProgressView(
            step=seen.step,
            total_steps=total,
            percent=f"{min(100, math.floor(100 * step / total))}%" if total else "",
            loss=loss_text(seen.loss),
            samples_per_second=_finite(seen.samples_per_second),
            tokens_per_second=_finite(seen.tokens_per_second),
            throughput=f"{tokens} tok/s" if tokens else f"{samples} samples/s" if samples else "",
            eta=duration(eta) if eta is not None and math.isfinite(eta) else "",
            update_time=MicroTime(draft.now.wall),
        ),
    )
    known = draft.observed.checkpoint
    if seen.checkpoint_step is not None and (seen.checkpoint_step, seen.checkpoint_path) != (known.step, known.path):
        view = CheckpointView(seen.checkpoint_step, seen.checkpoint_path, Time(draft.now.wall))
        draft.status = replace(draft.status, checkpoint=view)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _first_step(draft: Draft, seen: Progress) -> None:
    """The first step of the current generation ends an interruption; of a script that reports none, the start of all its processes does."""
    memory, group = draft.memory, draft.memory.group
    if group is None or memory.stepped or draft.broken():
        return
    if seen.generation != group.number or seen.first_step is None:
        if memory.broken_since is not None and memory.top_step is None and seen.step is None and not seen.reported and running(draft):
            spent = draft.now.mono - memory.broken_since
            draft.remember(account=memory.account.recovered(spent), broken_since=None)
            draft.event("Normal", "Recovered", f"generation {group.number} runs, {spent:.2f} s after the interruption")
        return
    at = draft.now.mono
    if seen.first_step_time is not None:
        at -= max(0.0, min(draft.now.wall - seen.first_step_time, draft.now.mono - memory.formed))
    if memory.broken_since is not None:
        spent = max(0.0, at - memory.broken_since)
        draft.remember(account=memory.account.recovered(spent))
        about = f"generation {group.number} stepped {spent:.2f} s after the interruption; {memory.made.again} steps are computed again"
        draft.event("Normal", "Recovered", about)
    if draft.status.startup.first_step_seconds is None:
        startup = replace(draft.status.startup, first_step_seconds=max(0.0, since_creation(draft) - (draft.now.mono - at)))
        draft.status = replace(draft.status, startup=startup)
    if memory.first_step is None:
        early_over = draft.observed.progress.step is not None  # another leader has written it
        draft.remember(first_step=at, progress_writes=len(PROGRESS_SCHEDULE) if early_over else 0)
    draft.remember(stepped=True, broken_since=None)


def _category(draft: Draft) -> str:
    memory = draft.memory
    runs = conditions.is_true(draft.status.conditions, conditions.RUNNING)
    if evaluation.between(draft):
        return goodput.WAITING
    if memory.group is None:
        ready = conditions.is_true(draft.status.conditions, conditions.PODS_READY)
        return goodput.STARTING if ready else goodput.WAITING
    if memory.broken_since is not None or draft.broken():
        return goodput.RECOVERING
    if memory.stepped or (runs and memory.top_step is not None):
        return goodput.RECOMPUTING if _behind(draft) else goodput.PRODUCTIVE
    if runs:
        # A script that reports nothing cannot be looked into: its running time counts as productive.
        return goodput.STARTING if any(a.progress.reported for a in draft.world.agents) else goodput.PRODUCTIVE
    return goodput.STARTING


def _behind(draft: Draft) -> bool:
    """Whether steps are computed again; looked at again when they will have been."""
    speaker = draft.first_speaker()
    if speaker is None or speaker.progress.step is None:
        return False
    behind = (draft.memory.top_step or 0) - speaker.progress.step
    if behind > 0:
        draft.wait(max(0.1, behind * (speaker.progress.step_seconds or 1.0)))
    return behind > 0


def _stepped_unseen(draft: Draft) -> bool:
    """Whether the group has stepped on while no leader looked: being watched is no part of being productive."""
    before, speaker = draft.observed.progress.step, draft.first_speaker()
    if draft.memory.reason != "Adopted" or speaker is None or speaker.progress.step is None:
        return False
    return before is None or speaker.progress.step > before
