"""Events tell each thing once: at most one write per reason and minute, the newest of those in between, a repetition as a series."""

import asyncio

import pytest

from builders.api_objects import job
from builders.fake_api import status
from lepton_operator.pods import events
from lepton_operator.pods.events import Recorder
from lepton_operator.substrate import Event


@pytest.fixture
def recorder(fake, api):
    fake.answers = [(201, {})]
    return Recorder(api, "operator-0")


def warning(message, reason="PodsRefused"):
    return Event("Warning", reason, message)


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def test_the_first_of_each_reason_is_told_at_once(fake, recorder):
    await recorder.emit(job(), warning("no room"))
    await recorder.emit(job(), warning("started", reason="Started"))
    await recorder.emit(job(), warning("again", reason="Third"))
    assert [body["note"] for _, _, body in fake.requests] == ["no room", "started", "again"]


async def test_in_between_only_the_newest_waits_for_the_minute_to_end(fake, recorder, monkeypatch):
    monkeypatch.setattr(events, "FIRST_GAP", 1.0)
    for number in range(20):
        await recorder.emit(job(), warning(f"pod {number} refused"))
    assert len(fake.requests) == 1
    await until(lambda: len(fake.requests) == 2)
    assert fake.requests[1][2]["note"] == "pod 19 refused"


async def test_the_same_sentence_becomes_a_series_of_one_event(fake, recorder, monkeypatch):
    monkeypatch.setattr(events, "FIRST_GAP", 0.5)
    for _ in range(5):
        await recorder.emit(job(), warning("no room"))
    await until(lambda: len(fake.requests) == 2)
    (_, _, made), (method, path, patch) = fake.requests
    assert method == "PATCH" and path.endswith(made["metadata"]["name"]) and patch["series"]["count"] == 5


async def test_a_quota_that_refuses_for_ten_minutes_makes_at_most_five_events(fake, recorder, monkeypatch):
    """Five hundred times faster, each refusal in other words."""
    monkeypatch.setattr(events, "FIRST_GAP", 0.12)
    for number in range(600):
        await recorder.emit(job(), warning(f"pod {number} refused"))
        await asyncio.sleep(0.001)
    assert 2 <= len(fake.requests) <= 5


async def test_a_series_whose_event_is_gone_is_told_anew(fake, recorder, monkeypatch):
    monkeypatch.setattr(events, "FIRST_GAP", 0.2)
    fake.answers = [(201, {}), status(404, "NotFound", "gone"), (201, {})]
    await recorder.emit(job(), warning("no room"))
    await recorder.emit(job(), warning("no room"))
    await until(lambda: len(fake.requests) == 3)
    assert [method for method, _, _ in fake.requests] == ["POST", "PATCH", "POST"]


async def test_an_event_that_is_refused_is_logged_and_not_raised(fake, recorder, caplog):
    fake.answers = [status(403, "Forbidden", "exceeded quota: count/events")]
    await recorder.emit(job(), warning("no room"))
    assert "no room" in caplog.text and "exceeded quota" in caplog.text


@pytest.mark.parametrize("busy", [status(429, "TooManyRequests", "slow down"), status(503, "ServiceUnavailable", "no etcd")])
async def test_what_found_a_busy_server_is_told_later_and_nobody_waits_for_it(fake, recorder, monkeypatch, busy):
    monkeypatch.setattr(events, "RETRY_SECONDS", 0.05)
    code, body = busy
    fake.answers = [(code, body, {"Retry-After": "0"})] * 3 + [(201, {})]
    await recorder.emit(job(), warning("no room"))
    assert len(fake.requests) == 1, "the caller is back after the first try"
    await until(lambda: len(fake.requests) == 4)
    assert {body["note"] for _, _, body in fake.requests} == {"no room"}
    assert len({body["metadata"]["name"] for _, _, body in fake.requests}) == 1, "a try whose answer was lost makes no second Event"


async def test_while_a_server_is_busy_repeats_are_counted_and_the_newest_is_what_is_told(fake, recorder, monkeypatch):
    monkeypatch.setattr(events, "RETRY_SECONDS", 0.3)
    monkeypatch.setattr(events, "FIRST_GAP", 0.4)
    fake.answers = [status(503, "ServiceUnavailable", "no etcd"), (201, {})]
    await recorder.emit(job(), warning("pod 0 refused"))
    for _ in range(4):
        await recorder.emit(job(), warning("pod 1 refused"))
    await until(lambda: len(fake.requests) == 2)
    assert fake.requests[1][2]["note"] == "pod 1 refused"
    for _ in range(4):
        await recorder.emit(job(), warning("pod 1 refused"))
    await until(lambda: len(fake.requests) == 3)
    assert fake.requests[2][0] == "PATCH" and fake.requests[2][2]["series"]["count"] == 5


async def test_a_try_that_arrived_although_its_answer_was_lost_is_no_error(fake, recorder, monkeypatch, caplog):
    monkeypatch.setattr(events, "RETRY_SECONDS", 0.01)
    fake.answers = [(503, {}, {"Retry-After": "0"}), status(409, "AlreadyExists", "it is there"), (200, {})]
    await recorder.emit(job(), warning("no room"))
    await until(lambda: len(fake.requests) == 2)
    await asyncio.sleep(0.05)
    assert len(fake.requests) == 2 and "could not be written" not in caplog.text


async def test_news_that_finds_no_answer_for_long_is_given_up_with_a_line_in_the_log(fake, recorder, monkeypatch, caplog):
    monkeypatch.setattr(events, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(events, "GIVE_UP_SECONDS", 0.3)
    fake.answers = [(503, {"message": "no etcd"}, {"Retry-After": "0"})]
    await recorder.emit(job(), warning("no room"))
    await until(lambda: "could not be written" in caplog.text)
    tries = len(fake.requests)
    assert 2 <= tries < 20, "with growing pauses"
    await asyncio.sleep(0.1)
    assert len(fake.requests) == tries and "no room" in caplog.text
