"""What Prometheus sees: exactly what docs/metrics.md says, ending with the job, and nothing of jobs on a replica that does not lead."""

import re
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lepton_operator.decision.goodput import PRODUCTIVE, RECOVERING, Account, Counters
from lepton_operator.metrics import Deletions, Metrics
from lepton_operator.probes import ProbeServer
from lepton_operator.reconciler import JobSummary
from lepton_operator.status import EvaluationView, Exact
from lepton_trainer.agent import settings, telemetry
from lepton_trainer.protocol import names
from lepton_trainer.protocol.messages import Progress
from lepton_trainer.protocol.slot import STEP_BUCKETS

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"
SUMMARY = JobSummary(
    namespace="team",
    name="digits",
    state="Running",
    generation=3,
    workers={"desired": 2, "ready": 1},
    restarts={"process": 1, "pod": 0, "node": 0},
    counters=Counters(steps=10, samples=80.0, tokens=5.0),
    loss=0.5,
    account=Account(seconds={PRODUCTIVE: 7.0, RECOVERING: 2.0}, recoveries=1, recovery_seconds=1.5, recomputed_steps=4),
    evaluation=EvaluationView("accuracy", Exact(0.97), round=2, value="0.9"),
)
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([^|]*)\| (.*?) \|$", re.MULTILINE)


class World:
    def __init__(self):
        self.summaries = {"team/digits": SUMMARY}
        self.leads = True
        self.ready = ""
        self.metrics = Metrics()
        self.metrics.watch(
            lambda: self.summaries,
            leader=lambda: self.leads,
            agents=lambda: 2,
            queued=lambda: 0,
            cached=lambda: {"jobs": 1, "pods": 2, "nodes": 0},
            node_evidence=True,
        )
        self.metrics.observe_request("create", "pods", "201", 0.01)


@pytest.fixture
async def world():
    world = World()
    server = ProbeServer(world.metrics.registry, lambda: world.ready)
    world.url = f"http://127.0.0.1:{await server.start(0, '127.0.0.1')}"
    yield world
    await server.stop()


async def get(world, path="/metrics"):
    async with aiohttp.ClientSession() as session, session.get(world.url + path) as response:
        return response.status, await response.text()


def families(text):
    return {family.name: family for family in text_string_to_metric_families(text)}


def documented(prefix):
    """name -> (type, labels, meaning) of the tables' rows."""
    rows = ROW.findall(DOCUMENT.read_text())
    return {name: (kind, set(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows if name.startswith(prefix)}


def exposed(text, common):
    found = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels}
        assert common <= labels or not family.samples, family.name
        found[name] = (family.type, labels - common, family.documentation)
    return found


async def test_the_operators_metrics_are_the_documented_ones(world):
    _, text = await get(world)
    jobs = {name: value for name, value in exposed(text, set()).items() if name.startswith("lepton_job_")}
    assert {name: (kind, labels - {"namespace", "job_name"}, about) for name, (kind, labels, about) in jobs.items()} == documented(
        "lepton_job_"
    )
    assert all({"namespace", "job_name"} <= labels for _, labels, _ in jobs.values())
    own = {name: value for name, value in exposed(text, set()).items() if name.startswith("lepton_operator_")}
    assert own == documented("lepton_operator_")
    assert not re.search(r"[{,]job=", text) and "_created" not in text


def test_the_pods_metrics_are_the_documented_ones(tmp_path):
    class Meter:
        def progress(self):
            metrics = {"accuracy": "0.5", 'no "label"': "1.0"}
            return Progress(step=3, loss="0.5", samples_per_second=1.0, tokens_per_second=1.0, steps_total=4, metrics=metrics)

        def histogram(self):
            return [0] * (len(STEP_BUCKETS) + 1), 0.0, 0

    told = {names.NAMESPACE: "team", names.JOB_NAME: "digits", names.JOB_UID: "u", names.WORKER_INDEX: "0", names.WORKER_UID: "p"}
    told |= {names.COORDINATOR: "tcp://127.0.0.1:1", names.HOST: "127.0.0.1", names.RUN_DIR: str(tmp_path), names.TOKEN_FILE: "t"}
    text = telemetry.exposition(settings.read(told, ["python"]), Meter(), [0], {"warm": 1})
    assert exposed(text, {"namespace", "job_name", "worker"}) == documented("lepton_train_")
    assert [sample.labels["name"] for sample in families(text)["lepton_train_metric"].samples] == ["accuracy"]


async def test_a_jobs_numbers_are_those_of_its_summary(world):
    found = families((await get(world))[1])
    value = {name: family.samples[0].value for name, family in found.items() if len(family.samples) == 1}
    assert value["lepton_job_steps"] == 10 and value["lepton_job_loss"] == 0.5 and value["lepton_job_generation"] == 3
    assert value["lepton_job_recovery_seconds"] == 1.5 and value["lepton_job_productive_seconds"] == 7.0
    (lost,) = found["lepton_job_lost_seconds"].samples
    assert lost.labels == {"namespace": "team", "job_name": "digits", "cause": RECOVERING} and lost.value == 2.0
    states = {sample.labels["state"]: sample.value for sample in found["lepton_job_workers"].samples}
    assert states == {"desired": 2.0, "ready": 1.0}


async def test_a_loss_that_was_never_reported_is_absent_and_a_nan_is_shown(world):
    world.summaries = {"a": replace(SUMMARY, loss=None)}
    assert not families((await get(world))[1])["lepton_job_loss"].samples
    world.summaries = {"a": replace(SUMMARY, loss=float("nan"))}
    assert "NaN" in (await get(world))[1]


async def test_series_end_with_the_job_and_with_leadership(world):
    world.leads = False
    _, text = await get(world)
    assert 'job_name="digits"' not in text and "lepton_operator_leader 0.0" in text
    world.leads, world.summaries = True, {}
    assert 'job_name="digits"' not in (await get(world))[1]


async def test_readiness_says_why_not_and_liveness_does_not_depend_on_it(world):
    world.ready = "the cache is not primed yet"
    assert await get(world, "/readyz") == (503, "the cache is not primed yet\n")
    assert (await get(world, "/healthz"))[0] == 200
    world.ready = ""
    assert (await get(world, "/readyz"))[0] == 200


def test_a_deletion_that_no_leader_saw_is_counted_by_the_next_one_and_each_only_once():
    counter = Metrics().deleted
    deletions = Deletions(counter)
    deletions.seen(1, leads=False, mono=100.0)  # the leader of that time has counted it
    deletions.seen(2, leads=False, mono=103.0)
    deletions.led_from_here(101.0)
    assert counter._value.get() == 2
    deletions.seen(1, leads=True, mono=110.0)
    deletions.led_from_here(101.0)
    assert counter._value.get() == 3


def test_a_standby_does_not_keep_in_mind_what_was_deleted_long_ago():
    deletions = Deletions(Metrics().deleted)
    for second in range(10_000):
        deletions.seen(1, leads=False, mono=float(second))
    assert len(deletions._uncounted) <= 601
