"""What the operator tells Prometheus: each job in numbers, taken from the reconciler at the moment of the scrape, and the operator itself.

A job's series end with the job, and on a replica that does not lead there are none. docs/metrics.md lists them all; a test compares.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lepton_operator.decision.goodput import PRODUCTIVE
from lepton_operator.decision.rounds import number_of
from lepton_operator.reconciler import JobSummary

disable_created_metrics()  # type: ignore[no-untyped-call]

JOB = ["namespace", "job_name"]
REMEMBERED_SECONDS = 600.0
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0)


class JobCollector(Collector):
    """`lepton_job_*`, made anew for each scrape."""

    def __init__(self, summaries: Callable[[], Mapping[str, JobSummary]]) -> None:
        self._summaries = summaries

    def describe(self) -> Iterable[Metric]:
        return [*_families().values()]

    def collect(self) -> Iterator[Metric]:
        families = _families()
        for summary in self._summaries().values():
            _add(families, summary)
        yield from families.values()


def _families() -> dict[str, Metric]:
    def counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"lepton_job_{name}", text, labels=[*JOB, *labels])

    def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"lepton_job_{name}", text, labels=[*JOB, *labels])

    return {
        "steps": counter("steps", "Optimiser steps reported, those computed again included."),
        "samples": counter("samples", "Samples consumed by reported steps."),
        "tokens": counter("tokens", "Tokens consumed by reported steps."),
        "nonfinite": counter("nonfinite_losses", "Steps whose loss was NaN or infinite."),
        "loss": gauge("loss", "The last loss reported."),
        "workers": gauge("workers", "Workers by state.", "state"),
        "restarts": counter("restarts", "Restarts by what was restarted.", "kind"),
        "recoveries": counter("recoveries", "Interruptions that ended with a step of a later generation."),
        "recovery_seconds": counter("recovery_seconds", "Seconds from the evidence of an interruption to the next step."),
        "productive": counter("productive_seconds", "Seconds in which the job made steps for the first time."),
        "lost": counter("lost_seconds", "Seconds in which it did not, by cause.", "cause"),
        "recomputed": counter("recomputed_steps", "Steps computed again after an interruption."),
        "generation": gauge("generation", "Number of the current generation."),
        "round": gauge("round", "The round that runs, of a job with a requirement."),
        "required_metric": gauge("required_metric", "The last value of the metric that is required, of its round.", "metric"),
        "required_target": gauge("required_target", "What that metric must reach.", "metric"),
        "info": gauge("info", "Always 1; the job's state as a label.", "state"),
    }


def _add(families: dict[str, Metric], job: JobSummary) -> None:
    def put(name: str, value: float, *labels: str) -> None:
        family = families[name]
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric([job.namespace, job.name, *labels], value)

    put("steps", job.counters.steps)
    put("samples", job.counters.samples)
    put("tokens", job.counters.tokens)
    put("nonfinite", job.counters.nonfinite)
    if job.loss is not None:
        put("loss", job.loss)
    for state, count in job.workers.items():
        put("workers", count, state)
    for kind, count in job.restarts.items():
        put("restarts", count, kind)
    put("recoveries", job.account.recoveries)
    put("recovery_seconds", job.account.recovery_seconds)
    put("productive", job.account.seconds.get(PRODUCTIVE, 0.0))
    for cause, seconds in job.account.seconds.items():
        if cause != PRODUCTIVE:
            put("lost", seconds, cause)
    put("recomputed", job.account.recomputed_steps)
    put("generation", job.generation)
    if (required := job.evaluation) is not None:
        put("round", required.round)
        put("required_target", required.target, required.metric)
        if required.value:
            put("required_metric", number_of(required.value), required.metric)
    put("info", 1, job.state)


class Deletions:
    """Each replica sees a job's deletion, and whoever leads counts it. Those that nobody counted, because its leader was dead, the next
    leader counts: it keeps in mind what it saw while it stood by."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._uncounted: deque[tuple[float, int]] = deque()  # (mono, jobs)

    def seen(self, number: int, *, leads: bool, mono: float) -> None:
        if leads:
            self._counter.inc(number)
            return
        self._uncounted.append((mono, number))
        while mono - self._uncounted[0][0] > REMEMBERED_SECONDS:
            self._uncounted.popleft()

    def led_from_here(self, since: float) -> None:
        """This process leads now; `since` (mono) was the last sign of a leader."""
        self._counter.inc(sum(number for at, number in self._uncounted if at > since))
        self._uncounted.clear()


def _count(counts: Callable[[], Mapping[str, int]], kind: str) -> float:
    return float(counts()[kind])


class Metrics:
    """Everything that /metrics shows. `leader`, `agents`, `queued` and `cached` are asked at each scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.finished = Counter("lepton_operator_jobs_finished", "Jobs that ended, by result.", ["result"], registry=registry)
        self.deleted = Counter("lepton_operator_jobs_deleted", "Jobs that were deleted, finished or not.", registry=registry)
        self.reconciles = Histogram(
            "lepton_operator_reconcile_duration_seconds", "Looking at one job once.", buckets=SECONDS, registry=registry
        )
        self.queueing = Histogram(
            "lepton_operator_queue_duration_seconds", "From the news of a job until it is looked at.", buckets=SECONDS, registry=registry
        )
        self.requests = Counter(
            "lepton_operator_api_requests", "Requests to the API server.", ["verb", "resource", "code"], registry=registry
        )
        self.latency = Histogram(
            "lepton_operator_api_request_duration_seconds",
            "Answers of the API server.",
            ["verb", "resource"],
            buckets=SECONDS,
            registry=registry,
        )
        self._leader = Gauge("lepton_operator_leader", "1 on the replica that leads.", registry=registry)
        self._agents = Gauge("lepton_operator_agents", "Agents connected to this replica's coordinator.", registry=registry)
        self._queued = Gauge("lepton_operator_queue_depth", "Jobs that wait to be looked at.", registry=registry)
        self._cached = Gauge("lepton_operator_cached_objects", "Objects in the cache.", ["kind"], registry=registry)
        self._cluster_scope = Gauge(
            "lepton_operator_node_evidence", "1 where nodes are watched, 0 where the installation has no right to.", registry=registry
        )
        for result in ("complete", "failed"):
            self.finished.labels(result)

    def watch(
        self,
        summaries: Callable[[], Mapping[str, JobSummary]],
        leader: Callable[[], bool],
        agents: Callable[[], int],
        queued: Callable[[], int],
        cached: Callable[[], Mapping[str, int]],
        node_evidence: bool,
    ) -> None:
        """What is known only once everything is wired."""
        self.registry.register(JobCollector(lambda: summaries() if leader() else {}))
        self._leader.set_function(lambda: float(leader()))
        self._agents.set_function(agents)
        self._queued.set_function(queued)
        self._cluster_scope.set(float(node_evidence))
        for kind in cached():
            self._cached.labels(kind).set_function(partial(_count, cached, kind))

    def observe_request(self, verb: str, resource: str, code: str, seconds: float) -> None:
        self.requests.labels(verb, resource, code).inc()
        self.latency.labels(verb, resource).observe(seconds)
