"""B18: the counters of jobs rise once for what happened, though their process is killed half-way; no series outlives its job."""

import signal
import time

import host_processes
from cluster import prometheus
from installation import Installation
from kube import eventually
from trainings import Training, Trainings

GOOD, BAD, LONG = "print('done')", "raise SystemExit(3)", "import time; time.sleep(600)"
SCRAPED_SECONDS = 3.0
"""By then Prometheus, which asks once a second, has seen what was counted before."""


def test_counters_of_jobs_are_right_over_a_reset_and_no_series_outlives_its_job(operator: Installation, trainings: Trainings) -> None:
    server = prometheus.start()
    time.sleep(SCRAPED_SECONDS)  # what other tests did is scraped by then
    began = time.monotonic()

    def risen(metric: str, labels: str = "") -> float:
        seconds = int(time.monotonic() - began) + 1
        found = server.query(f'sum(increase(lepton_operator_jobs_{metric}_total{{namespace="{operator.namespace}"{labels}}}[{seconds}s]))')
        return found[0][1] if found else 0.0

    def ended(*jobs: Training) -> None:
        for job in jobs:
            job.wait("Finished")

    good = [trainings.plain(f"good-{number}", GOOD, replicas=3) for number in range(2)]
    bad = trainings.plain("bad", BAD, replicas=3, recovery={"maxRestarts": 0})
    deleted = trainings.plain("deleted", LONG, replicas=3)
    ended(*good, bad)
    deleted.wait("Running")
    time.sleep(SCRAPED_SECONDS)  # what a process counted after the last scrape dies with it
    holder = operator.leader()
    host_processes.send(operator.leader_pid(), signal.SIGKILL)
    eventually(lambda: operator.leader() not in ("", holder), 15)
    good.append(trainings.plain("good-2", GOOD, replicas=3))
    deleted.kubectl("delete", "ltj", deleted.name, "--timeout=60s")
    ended(good[-1])

    def counted() -> tuple[int, int, int]:
        complete, failed = risen("finished", ',result="complete"'), risen("finished", ',result="failed"')
        return round(complete), round(failed), round(risen("deleted"))

    eventually(lambda: counted() == (3, 1, 1), 30, interval=1.0)
    for job in (*good, bad):
        job.kubectl("delete", "ltj", job.name, "--timeout=60s")
    eventually(lambda: counted() == (3, 1, 5), 30, interval=1.0)
    names = "|".join(job.name for job in (*good, bad, deleted))
    eventually(lambda: not server.query(f'{{__name__=~"lepton_job_.*",namespace="{trainings.namespace}",job_name=~"{names}"}}'), 30)
