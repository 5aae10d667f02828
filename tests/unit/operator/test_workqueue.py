"""A key waits once, is worked on by one worker, and no change to it is lost."""

import asyncio
import contextlib

from lepton_operator.workqueue import FIRST_BACKOFF, LONGEST_BACKOFF, WorkQueue


@contextlib.asynccontextmanager
async def running(queue, work, workers=4):
    task = asyncio.create_task(queue.run(workers, work))
    try:
        async with asyncio.timeout(5):
            yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(condition):
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_many_adds_of_a_waiting_key_are_one():
    seen = []

    async def work(key):
        seen.append(key)

    queue = WorkQueue()
    for key in ("a", "b", "a", "a"):
        queue.add(key)
    assert len(queue) == 2
    async with running(queue, work):
        await until(lambda: len(seen) == 2)
    assert seen == ["a", "b"]


async def test_an_add_during_the_work_runs_it_once_more_and_never_beside_itself():
    queue, active, seen, beside, gate = WorkQueue(), set(), [], [], asyncio.Event()

    async def work(key):
        beside.extend(active)
        active.add(key)
        seen.append(key)
        await gate.wait()
        active.discard(key)

    queue.add("a")
    async with running(queue, work):
        await until(lambda: active)
        for _ in range(5):
            queue.add("a")
        await asyncio.sleep(0.02)
        gate.set()
        await until(lambda: len(seen) == 2)
        await asyncio.sleep(0.02)
    assert seen == ["a", "a"] and beside == []


async def test_keys_run_side_by_side():
    queue, gate, active = WorkQueue(), asyncio.Event(), set()

    async def work(key):
        active.add(key)
        await gate.wait()

    for key in "abcd":
        queue.add(key)
    async with running(queue, work):
        await until(lambda: len(active) == 4)
        gate.set()


async def test_the_earliest_of_several_delays_counts():
    queue, times = WorkQueue(), []
    loop = asyncio.get_running_loop()

    async def work(key):
        times.append(loop.time())

    began = loop.time()
    async with running(queue, work):
        queue.add_after("a", 3.0)
        queue.add_after("a", 0.03)
        queue.add_after("a", 2.0)
        await until(lambda: times)
    assert 0.02 < times[0] - began < 1.0


async def test_work_names_when_it_wants_to_come_back():
    queue, count = WorkQueue(), []

    async def work(key):
        count.append(key)
        return 0.005 if len(count) < 4 else None

    queue.add("a")
    async with running(queue, work):
        await until(lambda: len(count) == 4)
        await asyncio.sleep(0.03)
    assert len(count) == 4


async def test_a_failing_key_backs_off_alone_and_success_forgets_it():
    queue = WorkQueue()
    delays = [queue.add_failed("a") for _ in range(14)]
    assert delays[0] == FIRST_BACKOFF and delays[1] == 2 * FIRST_BACKOFF and delays[-1] == LONGEST_BACKOFF
    assert queue.add_failed("b") == FIRST_BACKOFF
    queue.succeeded("a")
    assert queue.add_failed("a") == FIRST_BACKOFF


async def test_an_exception_costs_the_other_keys_nothing():
    queue, seen = WorkQueue(), []

    async def work(key):
        seen.append(key)
        if key == "bad":
            raise ValueError("broken")

    for key in ("bad", "good"):
        queue.add(key)
    async with running(queue, work, workers=1):
        await until(lambda: seen.count("bad") >= 2)
    assert "good" in seen


async def test_a_forgotten_key_does_not_come_back():
    queue, seen = WorkQueue(), []

    async def work(key):
        seen.append(key)

    async with running(queue, work):
        queue.add_after("a", 0.02)
        queue.forget("a")
        queue.add_after("b", 0.05)
        await until(lambda: seen)
    assert seen == ["b"]


async def test_timers_that_were_overtaken_do_not_pile_up():
    queue = WorkQueue()
    for number in range(10_000):
        queue.add_after("a", 60.0 - number / 1000)
    assert len(queue._heap) < 200
    assert any(due == queue._due["a"] for due, _, _ in queue._heap)
