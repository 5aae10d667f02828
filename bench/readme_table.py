"""The README's table of measured figures, made from bench/results/*.json: `python bench/readme_table.py` puts it into README.md.

What has not been measured yet is said, never left out. Kubeflow Trainer's figures were measured once, on a machine of the same kind, and
are kept here with their versions; everything else was measured beside ours, in the same run.
"""

import json
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[1]
README = CHECKOUT / "README.md"
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- figures: made by bench/readme_table.py -->", "<!-- end of figures -->"
NOT_YET, NOT_THERE = "not measured yet", "–"
KUBEFLOW = (
    "Kubeflow Trainer 2.3 (8c0f505) with JobSet 0.12 (08dfbdf) on Kubernetes 1.35.4, measured once, 2026-11-24, 2 cores and 24 GiB, "
    "kwok nodes, default rate limits, writes counted in the audit log; its bare client made 210 to 250 pods/s. It has had no elastic "
    "training since 2.2, so the first five rows do not apply to it."
)
CUT_OFF_SECONDS = 60
BUSY_LOAD_PER_CORE = 1.0
Json = dict[str, Any]


def load(name: str, results: Path = RESULTS) -> Json | None:
    """One bench's results; None where it has not been run."""
    path = results / f"{name}.json"
    found: Json | None = json.loads(path.read_text()) if path.exists() else None
    return found


def seconds(summary: Json | None) -> str:
    """A summary's median, in seconds or milliseconds, with n and the 95th percentile."""
    if not summary or not summary.get("n"):
        return NOT_YET
    return f"**{_time(summary['p50'])}** (p95 {_time(summary['p95'])}, n {summary['n']})"


def _time(value: float) -> str:
    return f"{value * 1000:.0f} ms" if abs(value) < 0.1 else f"{value:.2f} s"


def torchrun(tries: list[Json]) -> str:
    """How stock torchrun's tries ended: times of those that recovered, and how many did not."""
    if not tries:
        return NOT_YET
    ends = [str(entry.get("outcome") or ("cut off" if entry.get("cut_off") else "recovered")) for entry in tries]
    times = sorted(entry["stepped"] for entry, end in zip(tries, ends, strict=True) if end == "recovered")
    words = [f"{len(times)} of {len(tries)} recovered" + (f", in {', '.join(_time(t) for t in times)}" if times else "")]
    cut, lost = ends.count("cut off"), ends.count("lost")
    words += [f"{cut} not within {CUT_OFF_SECONDS} s"] if cut else []
    words += [f"in {lost} every agent gave up"] if lost else []
    return "; ".join(words)


def recovery_rows(local: Json | None, cluster: Json | None) -> list[tuple[str, str, str, str]]:
    """Three CPU workers: as processes of one machine, and as pods."""
    ours, theirs = (local or {}).get("lepton", {}), (local or {}).get("raw", {}).get("torchrun", {})
    process, worker = ours.get("process", {}), ours.get("worker 0", {})
    pods, bare = (cluster or {}).get("summary", {}), (cluster or {}).get("runs", {}).get("torchrun", {})
    killed, deleted = "process killed", "pod 0 deleted"
    return [
        (
            "local: a process killed → all 3 ranks step again",
            seconds(process.get("stepped")),
            torchrun(theirs.get("process", [])),
            NOT_THERE,
        ),
        (
            "local: worker 0 killed → the survivors step again",
            seconds(worker.get("stepped")),
            torchrun(theirs.get("worker 0", [])),
            NOT_THERE,
        ),
        ("of it until every survivor holds the new generation", seconds(worker.get("held")), NOT_THERE, NOT_THERE),
        (
            f"pods: {killed} → all 3 ranks step again",
            seconds(pods.get(f"lepton, {killed}: stepped")),
            torchrun(bare.get(killed, [])),
            NOT_THERE,
        ),
        (
            f"pods: {deleted} → the survivors step again",
            seconds(pods.get(f"lepton, {deleted}: stepped")),
            torchrun(bare.get(deleted, [])),
            NOT_THERE,
        ),
    ]


def cluster_rows(startup: Json | None, calls: Json | None) -> list[tuple[str, str, str, str]]:
    phases = (startup or {}).get("summary", {})
    one, fleet = (calls or {}).get("one_job"), (calls or {}).get("hundred_jobs")
    writes = f"**{one['operator_without_progress']}** and {one['of_it_progress']} of progress" if one else NOT_YET
    rates = fleet["pods_per_second"] if fleet else None
    share = fleet["operator_of_bare"]["p50"] if fleet else 0.0
    made = NOT_YET
    if rates:
        bare, smallest = rates["bare"]["p50"], rates["smallest"]["p50"]
        made = (
            f"**{rates['operator']['p50']:.0f} pods/s**, {share:.0%} of a bare client's {bare:.0f} (with the smallest pods {smallest:.0f})"
        )
    return [
        (
            "apply → first optimiser step, 2 workers, images present",
            seconds(phases.get("lepton step")),
            f"{seconds(phases.get('torchrun step'))}, as bare pods",
            NOT_THERE,
        ),
        ("of it the operator's own share", seconds(phases.get("lepton operator")), NOT_THERE, NOT_THERE),
        ("API writes by the operator, a job of 8 pods, apply to Finished", writes, NOT_THERE, "59, its controllers' and their Jobs'"),
        ("100 jobs of 8 pods, until all pods exist", made, NOT_THERE, "11 pods/s, 5 % of a bare client's"),
    ]


def coordinator_rows(coordinator: Json | None) -> list[tuple[str, str, str, str]]:
    found = coordinator or {}
    published = seconds(found.get("published_to_last_acknowledgement_seconds"))
    memory = f"**{found['memory_kib_per_connection']:.0f} KiB**" if found else NOT_YET
    return [
        ("a generation published → acknowledged by all of 2,000 simulated agents (TLS)", published, NOT_THERE, NOT_THERE),
        ("memory per agent's connection", memory, NOT_THERE, NOT_THERE),
    ]


def machines(results: dict[str, Json | None]) -> list[str]:
    """What each bench ran on, and whether others used the machine meanwhile."""
    lines = []
    for name, found in results.items():
        about = (found or {}).get("about") or (found or {}).get("machine")
        if not about:
            lines.append(f"- {name}: {NOT_YET}")
            continue
        load = about["load_before"][0]
        busy = (
            f"; **the machine was busy: load {load:.0f} on {about['cores']} cores**" if load > BUSY_LOAD_PER_CORE * about["cores"] else ""
        )
        packages = ", ".join(f"{package} {about['packages'][package]}" for package in ("torch", "uvloop") if package in about["packages"])
        lines.append(
            f"- {name} (`bench/results/{name}.json`): {about['time'][:10]}, {about['cpu']}, {about['cores']} cores, "
            f"{about['memory_gib']:.0f} GiB, Python {about['python']}, {packages}, gloo{busy}"
        )
    return lines


def build(results: Path = RESULTS) -> str:
    """The block between the marks of the README."""
    names = ("recovery-local", "recovery-cluster", "startup", "apicalls", "coordinator")
    found = {name: load(name, results) for name in names}
    rows = [
        *recovery_rows(found["recovery-local"], found["recovery-cluster"]),
        *cluster_rows(found["startup"], found["apicalls"]),
        *coordinator_rows(found["coordinator"]),
    ]
    head = ["| | Lepton | stock torchrun (c10d), same run | Kubeflow Trainer |", "|-|-|-|-|"]
    table = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(["", *head, *table, "", "Medians. Measured on:", "", *machines(found), f"- {KUBEFLOW}", ""])


def inserted(readme: str, block: str) -> str:
    """`readme` with `block` between the marks. Raises `ValueError` where a mark is missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(inserted(README.read_text(), build()))
