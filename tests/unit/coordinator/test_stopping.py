"""The rounds of a coordinated stop: a table of single steps, then ranks that run at random speeds."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_operator.coordinator.delivery import JobDelivery
from lepton_operator.coordinator.stopping import FIRST_MARGIN, StopRounds
from lepton_trainer.protocol.messages import FAILED, RUNNING, State, StopOrder, StopReply
from unit.coordinator.orders import group

READY = State(seq=1, phase=RUNNING, generation=1, highest=1, can_stop=True)


def replying(proposal: int, *, armed: bool = False, calls: int = 0, refused: bool = False, can_stop: bool = True) -> State:
    return replace(READY, stop=StopReply(proposal, armed, calls, refused, can_stop))


def proposed(*members: State | None) -> StopRounds:
    rounds = StopRounds()
    rounds.update(True, 1, members)
    return rounds


def test_nothing_is_proposed_unasked_or_to_a_script_that_never_looks() -> None:
    rounds = StopRounds()
    assert not rounds.update(False, 1, [READY, READY])
    assert not rounds.update(True, 1, [READY, replace(READY, can_stop=False)])
    assert not rounds.update(True, 1, [READY, replace(READY, generation=0)])
    assert not rounds.update(True, 1, [READY, replying(0, can_stop=False)])
    assert not rounds.update(True, 1, [])
    assert rounds.order is None


def test_a_round_waits_for_members_that_are_away() -> None:
    rounds = proposed(READY, None)
    assert rounds.order is None
    assert rounds.update(True, 1, [READY, READY])
    assert rounds.order == StopOrder(1, FIRST_MARGIN)
    assert not rounds.update(True, 1, [replying(1, armed=True), None])


def test_a_call_armed_by_all_is_committed_and_stays_so() -> None:
    rounds = proposed(READY, READY)
    assert not rounds.update(True, 1, [replying(1, armed=True), READY])
    assert rounds.update(True, 1, [replying(1, armed=True), replying(1, armed=True, calls=1)])
    assert rounds.order == StopOrder(1, FIRST_MARGIN, committed=True)
    assert not rounds.update(False, 1, [replace(READY, phase=FAILED), None])


def test_a_call_that_a_rank_has_passed_moves_ahead_of_the_fastest_by_a_growing_margin() -> None:
    rounds = proposed(READY, READY)
    rounds.update(True, 1, [replying(1, armed=True), replying(1, calls=100)])
    assert rounds.order == StopOrder(2, 100 + 2 * FIRST_MARGIN)
    rounds.update(True, 1, [replying(2, calls=150), replying(1, calls=100)])
    assert rounds.order == StopOrder(3, 150 + 4 * FIRST_MARGIN)


def test_not_armed_yet_is_not_passed() -> None:
    rounds = proposed(replying(0, calls=10), READY)
    assert rounds.order == StopOrder(1, 10 + FIRST_MARGIN)
    assert not rounds.update(True, 1, [replying(1, calls=11), replying(1, armed=True, calls=11)])


def test_a_refused_proposal_is_never_committed() -> None:
    rounds = proposed(READY, READY)
    rounds.update(True, 1, [replying(1, armed=True, calls=2), replying(1, refused=True, calls=3)])
    assert rounds.order is not None and (rounds.order.proposal, rounds.order.committed) == (2, False)
    assert not rounds.update(True, 1, [replying(1, armed=True), replying(1, armed=True)])  # late words about the dead one


def test_a_coordinator_that_starts_anew_does_not_reuse_a_number() -> None:
    rounds = proposed(replying(7, armed=True, calls=20), replying(7, armed=True, calls=20))
    assert rounds.order == StopOrder(8, 20 + FIRST_MARGIN)


def test_a_stop_that_is_no_longer_wanted_or_possible_is_withdrawn() -> None:
    for wanted, states in (
        (False, [READY, READY]),
        (True, [READY, replace(READY, phase=FAILED)]),
        (True, [READY, replying(1, can_stop=False)]),
    ):
        rounds = proposed(READY, READY)
        assert rounds.update(wanted, 1, states)
        assert rounds.order is None


def test_a_number_that_nobody_has_answered_is_not_reused_either() -> None:
    rounds = proposed(READY, READY)
    rounds.update(False, 1, [READY, READY])
    rounds.update(True, 1, [READY, READY])
    assert rounds.order == StopOrder(2, FIRST_MARGIN)


def test_a_new_generation_begins_without_the_old_ones_stop() -> None:
    delivery = JobDelivery(group(1, number=1, stop_requested=True))
    delivery.heard(("pod-0", "a"), READY)
    assert delivery.settle() and delivery.order(("pod-0", "a")).stop is not None
    delivery.set_group(group(1, number=2))
    delivery.settle()
    assert delivery.order(("pod-0", "a")).stop is None


class Rank:
    """Calls should_stop() in lock step with its peers, within one call; arms what it is told, refuses when it has waited too long."""

    def __init__(self) -> None:
        self.calls = 0
        self.order: StopOrder | None = None
        self.refused: set[int] = set()
        self.stopped_at = 0

    @property
    def waiting(self) -> bool:
        order = self.order
        return order is not None and order.proposal not in self.refused and self.calls == order.call

    def told(self, order: StopOrder | None) -> None:
        if self.stopped_at or (self.order is not None and order is not None and order.proposal < self.order.proposal):
            return
        if order is not None and order.committed:
            if order.proposal not in self.refused and self.calls <= order.call:
                self.order = order
            return
        self.order = order

    def step(self) -> None:
        if self.order is not None and self.order.committed and self.calls == self.order.call:
            self.stopped_at = self.calls
        elif not self.stopped_at and not self.waiting:
            self.calls += 1

    def give_up(self) -> None:
        if self.waiting and self.order is not None and not self.order.committed:
            self.refused.add(self.order.proposal)

    def state(self) -> State:
        order = self.order
        if order is None:
            return READY
        refused = order.proposal in self.refused
        armed = not refused and self.calls <= order.call
        return replying(order.proposal, armed=armed, calls=self.calls, refused=refused)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("step", "tell", "hear", "give up")), st.integers(0, 2)), max_size=120))
def test_ranks_that_stop_stop_at_the_same_call(moves: list[tuple[str, int]]) -> None:
    ranks = [Rank() for _ in range(3)]
    rounds = StopRounds()
    states: list[State | None] = [READY] * 3
    committed: set[tuple[int, int]] = set()

    def note() -> None:
        if rounds.order is not None and rounds.order.committed:
            committed.add((rounds.order.proposal, rounds.order.call))

    for move, index in moves:
        rank = ranks[index]
        if move == "step" and rank.calls <= min(other.calls for other in ranks):
            rank.step()
        elif move == "tell":
            rank.told(rounds.order)
        elif move == "hear":
            states[index] = rank.state()
            rounds.update(True, 1, states)
        elif move == "give up" and rounds.order is not None and not rounds.order.committed:
            rank.give_up()  # after 2 s, so its refusal is known before anybody else's arming can complete the round
            states[index] = rank.state()
            rounds.update(True, 1, states)
        note()
    for _ in range(40):  # the network is quiet, words arrive: it ends, and at one call
        for index, rank in enumerate(ranks):
            rank.told(rounds.order)
            states[index] = rank.state()
            rounds.update(True, 1, states)
            note()
        for rank in ranks:
            if rank.calls <= min(other.calls for other in ranks):
                rank.step()
    assert len(committed) == 1
    assert {rank.stopped_at for rank in ranks} == {next(iter(committed))[1]}
