"""The memory-mapped file between one rank and its agent: what the rank reports, and how it is told to stop.

A rank writes with plain stores and no system call; the agent looks when it wants to know. What was written last survives a SIGKILL of the
rank, because the file does. Layout (8 KiB, native byte order, both sides on one machine), offsets in bytes:

    0     words    16 x u64: see the indices below; each is written by one side only
    256   values   2 x 16 doubles: the report, written in turn; `word[REPORTS]` says which one is whole
    512   buckets  32 x u64: how many steps took at most `STEP_BUCKETS[i]` seconds (not cumulative; the last: longer)
    768   recent   32 doubles: the last step times in seconds, a ring
    1024  texts    2 x 3,584 bytes: length and CRC-32, then JSON of {"metrics", "checkpoint", "notices"}, written in turn like the values

Standard library only, Python >= 3.9.
"""

import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Tuple

SIZE = 8192
LARGEST = 2.0**62
"""What is reported stays below, so that it is an integer of 64 bits and its sums are finite."""
MAGIC = 0x31304E4F5450454C  # "LEPTON01"

# Words that the rank writes.
CALLS = 1  # calls of should_stop() so far
ARMED = 2  # the proposal at whose call the rank will stop; 0: none
REFUSED = 3  # the newest proposal that it waited for in vain
STOPPED = 4  # the proposal for which should_stop() has turned true
REPORTS = 5  # reports so far: values lie in half REPORTS % 2
TEXTS = 6  # the same for texts
# Words that the agent writes.
OFFER = 8  # proposal << CALL_BITS | call: both in one store, so that no rank sees half of it; 0: none
COMMITTED = 10  # the proposal that all ranks are to follow

CALL_BITS = 40
CALL_MASK = (1 << CALL_BITS) - 1
PROPOSAL_MASK = (1 << 24) - 1

VALUES = 256
HALF = 128
# Indices of the doubles in a half of the values.
NUMBER = 0  # the count of reports that this half belongs to, again at the end: both agree when it is whole
STEP = 1
TOTAL_STEPS = 2
LOSS = 3
SAMPLES = 4
TOKENS = 5
STEPS = 6
NONFINITE = 7
TIME = 8
FIRST_STEP = 9
FIRST_TIME = 10
SECONDS = 11
CHECKPOINT_STEP = 12
HAS = 13  # bits: which of the values have been given
NUMBER_AGAIN = 15
HAS_STEP, HAS_TOTAL, HAS_LOSS, HAS_CHECKPOINT = 1, 2, 4, 8

BUCKETS = 512
BUCKET_COUNT = 32
RECENT = 768
RECENT_COUNT = 32
TEXT = 1024
TEXT_HALF = 3584
TEXT_LIMIT = TEXT_HALF - 8
TEXT_HEADER = struct.Struct("=II")
NOTICES = 4
NOTICE_LIMIT = 400
"""So many notices are kept, the newest of each reason, and so many bytes of JSON of each one's sentence."""

METRICS_LIMIT = 64
"""Names of metrics that are kept; of more, those that were reported last."""
METRIC_NAME_LIMIT = 200
"""Characters of such a name, as JSON."""
METRICS_SPACE = 1536
"""Characters of all names and values, as JSON."""
CHECKPOINT_LIMIT = TEXT_LIMIT - METRICS_SPACE - 40
"""Characters of a checkpoint's path, as JSON: it is told even where the metrics fill their room."""

STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0)
"""Seconds; upper bounds of the histogram of step times."""


@dataclass(frozen=True)
class Snapshot:
    """What one rank has reported so far; counters since the rank started."""

    reports: int = 0
    step: Optional[int] = None
    total_steps: Optional[int] = None
    loss: Optional[float] = None
    samples: float = 0.0
    tokens: float = 0.0
    steps: int = 0
    nonfinite: int = 0
    time: float = 0.0  # unix seconds of the last step
    first_step: Optional[int] = None
    first_time: float = 0.0
    seconds: float = 0.0  # sum of the step times that the buckets count
    checkpoint_step: Optional[int] = None
    checkpoint: str = ""
    metrics: Dict[str, str] = field(default_factory=dict)
    buckets: Tuple[int, ...] = (0,) * BUCKET_COUNT
    recent: Tuple[float, ...] = ()


class SlotReader:
    """The agent's view of a slot: reads what the rank wrote, writes what the rank is to do."""

    def __init__(self, buffer: Any) -> None:
        """`buffer`: a writable buffer of `SIZE` bytes, aligned to 8, normally an mmap."""
        self._view = memoryview(buffer)
        self.words = self._view[:128].cast("Q")
        self.words[0] = MAGIC
        self._text: Tuple[int, Dict[str, Any]] = (0, {})

    def offer(self, proposal: int, call: int, committed: bool) -> None:
        """Tells the rank of a stop after its `call`th call; `proposal` 0 withdraws it."""
        self.words[COMMITTED] = proposal & PROPOSAL_MASK if committed else 0
        self.words[OFFER] = (proposal & PROPOSAL_MASK) << CALL_BITS | (call & CALL_MASK) if proposal else 0

    def snapshot(self) -> Snapshot:
        reports = self.words[REPORTS]
        if not reports:
            return Snapshot()
        values = self._values()
        has = int(values[HAS])
        text = self._texts()
        recent = self._view[RECENT : RECENT + 8 * RECENT_COUNT].cast("d")
        return Snapshot(
            reports=reports,
            step=int(values[STEP]) if has & HAS_STEP else None,
            total_steps=int(values[TOTAL_STEPS]) if has & HAS_TOTAL else None,
            loss=values[LOSS] if has & HAS_LOSS else None,
            samples=values[SAMPLES],
            tokens=values[TOKENS],
            steps=int(values[STEPS]),
            nonfinite=int(values[NONFINITE]),
            time=values[TIME],
            first_step=int(values[FIRST_STEP]) if values[FIRST_TIME] and has & HAS_STEP else None,
            first_time=values[FIRST_TIME],
            seconds=values[SECONDS],
            checkpoint_step=int(values[CHECKPOINT_STEP]) if has & HAS_CHECKPOINT else None,
            checkpoint=str(text.get("checkpoint", "")),
            metrics=text.get("metrics", {}),
            buckets=tuple(self._view[BUCKETS : BUCKETS + 8 * BUCKET_COUNT].cast("Q")),
            recent=tuple(second for second in recent if second > 0),
        )

    def notices(self) -> Tuple[Tuple[int, str, str], ...]:
        """(number, reason, message), oldest first; a rank may have some before it reports anything."""
        if not self.words[TEXTS]:
            return ()
        return tuple((int(number), str(reason), str(message)) for number, reason, message in self._texts().get("notices", ()))

    def _values(self) -> Tuple[float, ...]:
        """The newest whole half; a writer that overtakes the reader twice makes it look again."""
        values: Tuple[float, ...] = ()
        for _ in range(8):
            start = VALUES + HALF * (self.words[REPORTS] % 2)
            values = tuple(self._view[start : start + HALF].cast("d"))
            if values[NUMBER] == values[NUMBER_AGAIN]:
                break
        # A script may report anything. What no message can carry counts as 0; a loss that is not finite travels as text.
        return tuple(value if index == LOSS or abs(value) < LARGEST else 0.0 for index, value in enumerate(values))

    def _texts(self) -> Dict[str, Any]:
        number = self.words[TEXTS]
        if number == self._text[0]:
            return self._text[1]
        start = TEXT + TEXT_HALF * (number % 2)
        length, crc = TEXT_HEADER.unpack_from(self._view, start)
        payload = bytes(self._view[start + 8 : start + 8 + min(length, TEXT_LIMIT)])
        if zlib.crc32(payload) == crc:
            self._text = (number, json.loads(payload))
        return self._text[1]
