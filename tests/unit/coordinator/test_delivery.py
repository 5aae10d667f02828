"""Which order each agent should follow: tables, then random interleavings of lost, repeated and reordered words."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_operator.coordinator.delivery import JobDelivery
from lepton_operator.worker import GroupOrder
from lepton_trainer.protocol.messages import COMPLETE, FAILED, PREPARED, RUNNING, Order, State
from unit.coordinator.orders import group

A, B, C = ("pod-0", "a"), ("pod-1", "a"), ("pod-2", "a")


def prepared(number: int, port: int = 0) -> State:
    return State(seq=1, phase=PREPARED, generation=number, highest=number, store_port=port)


def test_without_a_generation_agents_stand_by() -> None:
    assert JobDelivery(group(2)).order(A) == Order(seq=0)


def test_members_prepare_until_the_port_of_rank_zero_is_known() -> None:
    delivery = JobDelivery(group(2, number=3))
    order = delivery.order(B)
    assert (order.generation, order.group_rank, order.group_size, order.master_port) == (3, 1, 2, 0)
    assert delivery.heard(B, prepared(3)) and not delivery.settle()
    assert delivery.heard(A, prepared(3, port=4711)) and delivery.settle()
    assert [delivery.order(key).master_port for key in (A, B)] == [4711, 4711]


def test_what_a_round_gives_its_ranks_is_in_every_members_order() -> None:
    delivery = JobDelivery(group(2, number=3, round=2, env={"LEPTON_ROUND": "2"}, args=("--lr", "0.1")))
    assert [(o.round, o.env, o.args) for o in map(delivery.order, (A, B))] == [(2, {"LEPTON_ROUND": "2"}, ("--lr", "0.1"))] * 2


@pytest.mark.parametrize(
    ("key", "state"),
    [
        (B, prepared(3, port=4711)),  # not the master
        (("pod-0", "b"), prepared(3, port=4711)),  # the master's place, another life
        (A, prepared(2, port=4711)),  # an older generation's store
        (A, prepared(3)),
    ],
)
def test_no_other_words_start_a_generation(key: tuple[str, str], state: State) -> None:
    delivery = JobDelivery(group(2, number=3))
    delivery.heard(key, state)
    assert not delivery.settle()
    assert delivery.order(B).master_port == 0


def test_the_master_is_the_member_of_group_rank_zero_whatever_its_index() -> None:
    delivery = JobDelivery(group(3, number=1, members=(2, 1)))
    delivery.heard(C, prepared(1, port=99))
    delivery.settle()
    assert delivery.order(B).master_port == 99
    assert delivery.order(A) == Order(seq=0)


def test_a_new_number_forgets_the_port_and_its_master_may_have_said_the_new_one_already() -> None:
    delivery = JobDelivery(group(2, number=1))
    delivery.heard(A, prepared(1, port=11))
    delivery.settle()
    delivery.set_group(group(2, number=2))
    delivery.settle()
    assert delivery.order(B).master_port == 0
    delivery.heard(A, prepared(2, port=22))
    delivery.settle()
    assert delivery.order(B).master_port == 22


def test_a_coordinator_that_starts_anew_learns_the_port_from_the_masters_join() -> None:
    delivery = JobDelivery(group(2, number=5))
    delivery.heard(A, State(seq=9, phase=RUNNING, generation=5, highest=5, store_port=77))
    delivery.settle()
    assert delivery.order(B).master_port == 77


def test_the_port_outlives_the_masters_connection() -> None:
    delivery = JobDelivery(group(2, number=1))
    delivery.heard(A, prepared(1, port=11))
    delivery.settle()
    delivery.dropped(A)
    delivery.settle()
    assert delivery.order(B).master_port == 11


def test_a_verdict_comes_with_its_grace_and_only_to_whom_it_is_for() -> None:
    delivery = JobDelivery(group(2, number=1, shutdown={"pod-0": COMPLETE}, grace_seconds=5.0))
    assert (delivery.order(A).shutdown, delivery.order(A).grace_seconds) == (COMPLETE, 5.0)
    assert (delivery.order(B).shutdown, delivery.order(B).grace_seconds) == ("", 0.0)


# Random interleavings: a model agent behind a network that delays, repeats and drops connections. Whatever happens before, once the network
# is quiet every member runs the newest generation with the port of that generation's own store.


@dataclass
class ModelAgent:
    key: tuple[str, str]
    state: State = field(default_factory=lambda: State(seq=0))
    generations: list[tuple[int, int]] = field(default_factory=list)  # (number, port) it started

    def obey(self, order: Order) -> bool:
        """True when the state changed."""
        number, before = order.generation, self.state
        if not number or number < self.state.highest:
            return False
        if number > self.state.generation:
            port = 1000 + number if order.group_rank == 0 else 0
            self.state = replace(prepared(number, port), seq=self.state.seq + 1)
        if order.master_port and self.state.phase == PREPARED:  # a start may come without the prepare before it
            self.generations.append((number, order.master_port))
            self.state = replace(self.state, seq=self.state.seq + 1, phase=RUNNING)
        return self.state != before


class Network:
    def __init__(self, agents: int) -> None:
        self.delivery = JobDelivery(group(agents))
        self.agents = [ModelAgent((f"pod-{index}", "a")) for index in range(agents)]
        self.up: list[list[State]] = [[] for _ in range(agents)]
        self.down: list[list[Order]] = [[] for _ in range(agents)]
        self.heard_seq = [0] * agents

    def publish(self) -> None:
        for index, agent in enumerate(self.agents):
            order = self.delivery.order(agent.key)
            if not self.down[index] or self.down[index][-1] != order:
                self.down[index].append(order)

    def hear(self, index: int, state: State) -> None:
        if state.seq > self.heard_seq[index]:
            self.heard_seq[index] = state.seq
            self.delivery.heard(self.agents[index].key, state)
            if self.delivery.settle():
                self.publish()

    def cut(self, index: int) -> None:
        """Everything in flight is lost; a new connection brings the whole state and gets the whole order."""
        self.up[index].clear()
        self.down[index].clear()
        self.delivery.dropped(self.agents[index].key)
        self.delivery.settle()
        self.heard_seq[index] = 0
        self.agents[index].state = replace(self.agents[index].state, seq=self.agents[index].state.seq + 1)
        self.hear(index, self.agents[index].state)
        self.down[index].append(self.delivery.order(self.agents[index].key))

    def quiet(self) -> None:
        while any(self.up) or any(self.down):
            for index in range(len(self.agents)):
                while self.down[index]:
                    self.obey(index, self.down[index].pop(0))
                while self.up[index]:
                    self.hear(index, self.up[index].pop(0))

    def obey(self, index: int, order: Order) -> None:
        if self.agents[index].obey(order):
            self.up[index].append(self.agents[index].state)

    def restart(self, order: GroupOrder) -> None:
        self.delivery = JobDelivery(order)
        for index in range(len(self.agents)):
            self.cut(index)


MOVES = st.tuples(st.sampled_from(("publish", "down", "repeat", "late", "up", "up-twice", "cut", "restart")), st.integers(0, 2))


@settings(max_examples=200, deadline=None)
@given(st.lists(MOVES, max_size=60))
def test_whatever_is_lost_repeated_or_reordered_the_newest_generation_starts_everywhere(moves: list[tuple[str, int]]) -> None:
    network = Network(3)
    number = 0
    for move, index in moves:
        if move == "publish":
            number += 1
            network.delivery.set_group(group(3, number=number))
            network.delivery.settle()
            network.publish()
        elif move == "down" and network.down[index]:
            network.obey(index, network.down[index].pop(0))
        elif move == "repeat" and network.down[index]:
            network.obey(index, network.down[index][0])
        elif move == "late" and len(network.down[index]) > 1:  # the newest arrives before the older ones
            network.obey(index, network.down[index].pop())
        elif move == "up" and network.up[index]:
            network.hear(index, network.up[index].pop(0))
        elif move == "up-twice" and network.up[index]:
            network.hear(index, network.up[index][0])
            network.hear(index, network.up[index].pop(0))
        elif move == "cut":
            network.cut(index)
        elif move == "restart":
            network.restart(network.delivery.group)
    network.publish()
    for index in range(3):
        network.cut(index)
    network.quiet()
    for agent in network.agents:
        assert all(port == 1000 + started for started, port in agent.generations)  # never another generation's store
        assert len(agent.generations) == len({started for started, _ in agent.generations})  # never twice
        if number:
            assert (agent.state.generation, agent.state.phase) == (number, RUNNING)


def test_failed_members_do_not_change_what_others_are_told() -> None:
    delivery = JobDelivery(group(2, number=1))
    delivery.heard(A, prepared(1, port=11))
    delivery.settle()
    before = delivery.order(B)
    delivery.heard(A, State(seq=5, phase=FAILED, generation=1, highest=1))
    assert not delivery.settle()
    assert delivery.order(B) == before
