"""Small builders of group orders."""

from typing import Any

from lepton_operator.worker import GroupOrder, MemberOrder

JOB, JOB_UID = "default/digits", "job-1"


def group(workers: int = 2, number: int = 0, members: tuple[int, ...] | None = None, **changes: Any) -> GroupOrder:
    """Workers 0..n-1 named pod-i with boot "a"; from `number` 1 on, `members` (all) form that generation in order."""
    chosen = tuple(range(workers)) if members is None else members
    defaults: dict[str, Any] = {
        "job": JOB,
        "job_uid": JOB_UID,
        "workers": {f"pod-{index}": index for index in range(workers)},
        "number": number,
        "members": tuple(MemberOrder(f"pod-{index}", "a", index, rank, rank) for rank, index in enumerate(chosen)) if number else (),
        "world_size": len(chosen) if number else 0,
        "master_host": f"10.0.0.{chosen[0]}" if number and chosen else "",
        "digest": f"digest-{number}-{chosen}" if number else "",
        "token": "secret",
    }
    return GroupOrder(**{**defaults, **changes})
