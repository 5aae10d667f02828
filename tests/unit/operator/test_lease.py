"""Who leads: with made-up clocks and a store that conflicts, is away or loses answers; then in real threads over real HTTP."""

import threading
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.lease_store import HttpStore, LeaseStore
from lepton_operator.pods import lease as lease_module
from lepton_operator.pods.blocking_api import BlockingApi
from lepton_operator.pods.lease import DURATION_SECONDS, LOOK_SECONDS, MARGIN_SECONDS, RENEW_SECONDS, LeaseApi, LeaseKeeper
from lepton_operator.worker import Clock


@dataclass
class Time:
    mono: float = 1000.0

    def __call__(self) -> Clock:
        return Clock(wall=1.8e9 + self.mono, mono=self.mono)


@dataclass
class Replica:
    """A keeper and what it called back, turned by hand."""

    api: LeaseApi
    time: Time
    place: str = ""
    told: list[str] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keeper = LeaseKeeper(
            api=self.api,
            namespace="lepton",
            name="lepton.training.lepton.ai",
            place=self.place,
            now=self.time,
            on_acquired=lambda: self.told.append("acquired"),
            on_renewed=self.deadlines.append,
            on_lost=lambda: self.told.append("lost"),
            on_other_holder=lambda holder: self.told.append(f"met {holder}"),
        )

    def turn(self) -> "Replica":
        self.keeper.turn()
        return self

    @property
    def leading(self) -> bool:
        return self.keeper.leading


def two(time: Time, store: LeaseStore) -> tuple[Replica, Replica]:
    """The first leads, the second has met it."""
    first, second = Replica(store, time), Replica(store, time)
    first.turn()
    second.turn()
    assert first.leading and not second.leading
    return first, second


def test_the_first_makes_the_lease_and_leads_and_the_second_stands_by() -> None:
    time, store = Time(), LeaseStore()
    first, second = two(time, store)
    assert first.told == ["acquired"]
    assert first.deadlines == [time.mono + DURATION_SECONDS - MARGIN_SECONDS]
    assert second.told == [f"met {first.keeper.identity}"]
    assert store.lease is not None and store.lease["spec"]["leaseTransitions"] == 0


def test_a_renewal_is_one_write_and_no_read() -> None:
    time, store = Time(), LeaseStore()
    first = Replica(store, time).turn()
    for _ in range(5):
        time.mono += RENEW_SECONDS
        first.turn()
    assert store.writes == 6 and first.told == ["acquired"] and len(first.deadlines) == 6


def test_a_dead_leader_is_followed_when_its_lease_has_not_changed_for_its_duration() -> None:
    time, store = Time(), LeaseStore()
    _, second = two(time, store)
    killed = time.mono
    while not second.leading:
        time.mono += LOOK_SECONDS
        second.turn()
    assert DURATION_SECONDS <= time.mono - killed <= DURATION_SECONDS + 2 * LOOK_SECONDS
    assert store.holder == second.keeper.identity
    assert store.lease is not None and store.lease["spec"]["leaseTransitions"] == 1


def test_a_process_started_again_in_the_same_pod_does_not_wait_for_the_one_before_it() -> None:
    time, store = Time(), LeaseStore()
    Replica(store, time, place="operator-0").turn()
    assert Replica(store, time, place="operator-0").turn().leading
    assert not Replica(store, time, place="operator-00").turn().leading
    assert not Replica(store, time).turn().leading


def test_a_lease_let_go_is_taken_at_the_next_look() -> None:
    time, store = Time(), LeaseStore()
    first, second = two(time, store)
    first.keeper.release()
    assert store.holder == "" and not first.leading
    time.mono += LOOK_SECONDS
    assert second.turn().leading


def test_a_standby_that_ends_leaves_the_lease_alone() -> None:
    time, store = Time(), LeaseStore()
    first, second = two(time, store)
    second.keeper.release()
    assert store.holder == first.keeper.identity


def test_a_leader_that_was_stopped_knows_before_it_asks_and_does_no_harm() -> None:
    time, store = Time(), LeaseStore()
    first, second = two(time, store)
    for _ in range(DURATION_SECONDS + 2):  # the first is stopped meanwhile, or its machine suspended
        time.mono += LOOK_SECONDS
        second.turn()
    assert second.leading and not first.leading
    writes = store.writes
    first.turn()
    assert first.told == ["acquired", "lost"] and store.writes == writes  # its conditional write was refused
    first.turn()
    assert first.told[2:] == [f"met {second.keeper.identity}"]
    assert store.holder == second.keeper.identity and len(first.deadlines) == 1


def test_a_leader_that_was_stopped_and_not_followed_leads_on() -> None:
    time, store = Time(), LeaseStore()
    first = Replica(store, time).turn()
    time.mono += 100
    assert first.turn().told == ["acquired", "lost", "acquired"]
    assert first.leading


def test_a_renewal_that_took_longer_than_the_lease_does_not_count() -> None:
    time, store = Time(), LeaseStore()

    class Slow(LeaseStore):
        def request(self, *arguments, **keywords):  # type: ignore[no-untyped-def]
            time.mono += DURATION_SECONDS
            return store.request(*arguments, **keywords)

    first = Replica(Slow(), time).turn()
    assert not first.leading and first.told == [] and store.holder == first.keeper.identity


def test_an_api_server_that_is_away_ends_leading_at_the_deadline_once_and_its_return_begins_it_again() -> None:
    time, store = Time(), LeaseStore()
    first = Replica(store, time).turn()
    store.away = True
    for _ in range(20):
        time.mono += LOOK_SECONDS
        first.turn()
        assert first.leading == (time.mono < first.deadlines[0])
    assert first.told == ["acquired", "lost"]
    store.away = False
    assert first.turn().leading
    assert first.told == ["acquired", "lost", "acquired"]


def test_a_lost_answer_to_a_renewal_costs_nothing() -> None:
    time, store = Time(), LeaseStore()
    first = Replica(store, time).turn()
    store.lost = True
    time.mono += RENEW_SECONDS
    first.turn()
    store.lost = False
    time.mono += LOOK_SECONDS
    first.turn()
    assert first.told == ["acquired"] and first.deadlines[-1] == time.mono + DURATION_SECONDS - MARGIN_SECONDS


def test_a_lost_answer_to_the_first_write_is_noticed() -> None:
    time, store = Time(), LeaseStore()
    first = Replica(store, time)
    store.lease, store.lost = None, False
    first.keeper.turn()
    store.lost = True
    second = Replica(store, time).turn()
    assert not second.leading
    assert store.holder == first.keeper.identity


def test_a_deleted_lease_is_made_again() -> None:
    time, store = Time(), LeaseStore()
    first = Replica(store, time).turn()
    store.lease = None
    for _ in range(2):
        time.mono += RENEW_SECONDS
        first.turn()
    assert first.leading and store.holder == first.keeper.identity and first.told == ["acquired"]


def test_a_lease_that_was_given_to_somebody_else_ends_leading_at_once() -> None:
    time, store = Time(), LeaseStore()
    first = Replica(store, time).turn()
    store.edit(holderIdentity="somebody")
    first.turn()
    first.turn()
    assert not first.leading and first.told == ["acquired", "lost", "met somebody"]


def test_labels_and_annotations_of_the_lease_are_kept() -> None:
    time, store = Time(), LeaseStore()
    first = Replica(store, time).turn()
    assert store.lease is not None
    store.lease["metadata"]["labels"] = {"team": "ml"}
    store.edit()
    for _ in range(3):
        time.mono += RENEW_SECONDS
        first.turn()
    assert store.lease["metadata"]["labels"] == {"team": "ml"} and first.leading


MOVES = st.tuples(
    st.integers(0, 2), st.sampled_from(("turn", "turn", "turn", "wait", "stop", "away", "lost", "release")), st.floats(0.1, 14.0)
)


@settings(max_examples=120, deadline=None)
@given(st.lists(MOVES, max_size=80))
def test_never_do_two_lead_at_once_and_somebody_leads_in_the_end(moves: list[tuple[int, str, float]]) -> None:
    time, store = Time(), LeaseStore()
    replicas = [Replica(store, time) for _ in range(3)]

    def at_most_one() -> None:
        assert sum(replica.leading for replica in replicas) <= 1

    for who, move, seconds in moves:
        if move == "wait":
            time.mono += seconds
        elif move == "release":
            replicas[who].keeper.release()
        elif move == "stop":  # it stands still while the others go on
            for _ in range(int(seconds)):
                time.mono += LOOK_SECONDS
                replicas[(who + 1) % 3].turn()
                at_most_one()
        else:
            store.away, store.lost = move == "away", move == "lost"
            replicas[who].turn()
        at_most_one()
    store.away = store.lost = False
    for _ in range(2 * DURATION_SECONDS):
        time.mono += LOOK_SECONDS
        for replica in replicas:
            replica.turn()
            at_most_one()
    assert any(replica.leading for replica in replicas)


# In real threads, over HTTP.


class Running:
    def __init__(self, url: str) -> None:
        self.acquired, self.lost, self.met = threading.Event(), threading.Event(), threading.Event()
        self.keeper = LeaseKeeper(
            api=BlockingApi(url),
            namespace="lepton",
            name="lease",
            on_acquired=self.acquired.set,
            on_renewed=lambda deadline: None,
            on_lost=self.lost.set,
            on_other_holder=lambda holder: self.met.set(),
        )
        self.keeper.start()


def test_a_standby_takes_over_within_two_seconds_of_a_clean_end() -> None:
    with HttpStore() as http:
        first = Running(http.url)
        assert first.acquired.wait(5)
        second = Running(http.url)
        assert second.met.wait(5)
        first.keeper.stop()
        began = time.monotonic()
        assert second.acquired.wait(5)
        assert time.monotonic() - began < 2.0
        second.keeper.stop()
        assert http.store.holder == ""


def test_a_partition_stops_the_leader_before_its_lease_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("DURATION_SECONDS", 1),
        ("MARGIN_SECONDS", 0.3),
        ("RENEW_SECONDS", 0.1),
        ("LOOK_SECONDS", 0.1),
        ("REQUEST_SECONDS", 0.2),
    ):
        monkeypatch.setattr(lease_module, name, value)
    with HttpStore() as http:
        first = Running(http.url)
        assert first.acquired.wait(5)
        http.silent.set()
        began = time.monotonic()
        assert first.lost.wait(5)
        assert time.monotonic() - began < 1.2 and not first.keeper.leading
        first.acquired.clear()
        http.silent.clear()
        assert first.acquired.wait(5)
        first.keeper.stop()


def test_a_term_lasts_while_nobody_else_has_led() -> None:
    time, store = Time(), LeaseStore()
    first, second = two(time, store)
    term = first.keeper.term
    store.away = True
    time.mono += DURATION_SECONDS
    first.turn()
    assert not first.leading
    store.away = False
    assert first.turn().leading and first.keeper.term == term, "only the API server was away"
    second.turn()  # it sees the renewal
    time.mono += 2 * DURATION_SECONDS
    assert second.turn().leading
    first.turn().turn()  # its renewal conflicts, so it looks
    time.mono += 2 * DURATION_SECONDS
    assert first.turn().leading and first.keeper.term > term


def test_who_takes_over_knows_since_when_nobody_led() -> None:
    time, store = Time(), LeaseStore()
    first, second = two(time, store)
    time.mono += RENEW_SECONDS
    first.turn()
    second.turn()
    died = time.mono
    time.mono += DURATION_SECONDS
    assert second.turn().leading
    assert second.keeper.unled_since == died
    time.mono += RENEW_SECONDS
    second.turn()
    assert second.keeper.unled_since == died, "renewals change nothing"
