"""x"""

from trainings import Trainings


def test_it_trains_on_when_worker_0_is_deleted(trainings: Trainings) -> None:
    job = trainings.group("gone0", replicas=2)
    job.steps_in_generation(1, 90)
    before = job.agents()
    job.kubectl("delete", "pod", job.pods()[0]["metadata"]["name"], "--wait=false")
    job.steps_in_generation(2, 60)
    status = job.complete()
    print(status)
