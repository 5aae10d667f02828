"""What ranks want the user to read: told once, as events of reasons that are known, and as a condition where training suffers."""

from dataclasses import replace

from lepton_operator import conditions
from lepton_operator.conditions import Condition
from lepton_trainer.protocol.messages import Notice
from simulation import Simulation


def running() -> Simulation:
    sim = Simulation(2)
    sim.settle(rounds=4)
    sim.step(5)
    sim.decide()
    return sim


def says(sim: Simulation, *notices: Notice) -> None:
    agent = sim.running()[0]
    agent.progress = replace(agent.progress, notices=notices)
    sim.settle(rounds=2)


def checkpointing(sim: Simulation) -> Condition | None:
    return conditions.find(sim.status.conditions, conditions.CHECKPOINTING)


def test_a_checkpoint_that_cannot_be_saved_is_an_event_and_a_condition_until_one_is() -> None:
    sim = running()
    assert checkpointing(sim) is None
    failed = Notice(1, 1, "CheckpointFailed", "step 20 is not saved, training goes on: No space left on device")
    says(sim, failed)
    condition = checkpointing(sim)
    assert condition is not None and not condition.status and "No space left" in condition.message
    says(sim, failed)
    assert sim.events.count("CheckpointFailed") == 1
    says(sim, replace(failed, number=2))
    assert sim.events.count("CheckpointFailed") == 2
    says(sim, replace(failed, number=2), Notice(1, 3, "CheckpointsSavedAgain", "the checkpoint of step 60 is saved"))
    condition = checkpointing(sim)
    assert condition is not None and condition.status and condition.reason == "CheckpointsSavedAgain"
    assert sim.status.state == "Running", "training went on"


def test_each_notice_is_told_once_though_it_is_repeated_with_others_and_in_later_generations() -> None:
    sim = running()
    resumed, damaged = Notice(1, 1, "Resumed", "from step 10"), Notice(2, 1, "CheckpointDamaged", "step 20 is not used")
    says(sim, resumed)
    says(sim, resumed, damaged)
    says(sim, damaged, replace(resumed, generation=2, number=2))
    assert [sim.events.count(reason) for reason in ("Resumed", "CheckpointDamaged")] == [2, 1]


def test_a_reason_that_nobody_knows_is_not_told() -> None:
    sim = running()
    says(sim, Notice(1, 1, "Completed", "all is well"), Notice(1, 2, "Resumed", "from step 1"))
    assert sim.events.count("Completed") == 0 and sim.events.count("Resumed") == 1
