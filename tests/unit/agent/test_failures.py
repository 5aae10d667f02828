"""From a dead process to one sentence: tracebacks, witnesses, error files, OOM counters."""

import json
from pathlib import Path

import pytest

from lepton_trainer.agent.failures import OomCounter, explain, find_traceback, sentence

PLAIN = """\
starting
Traceback (most recent call last):
  File "/code/train.py", line 40, in <module>
    main()
  File "/code/train.py", line 12, in main
    model(batch)
  File "/usr/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1739, in _call_impl
    return forward_call(*args)
ValueError: bad label 11
"""
CHAINED = """\
Traceback (most recent call last):
  File "/code/data.py", line 3, in load
    open(path)
FileNotFoundError: [Errno 2] No such file or directory: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/code/train.py", line 9, in <module>
    load()
  File "/code/data.py", line 5, in load
    raise RuntimeError("no data") from None
RuntimeError: no data
"""
SYNTAX = """\
  File "/code/train.py", line 3
    def f(:
          ^
SyntaxError: invalid syntax
"""
GLOO = PLAIN.replace(
    "ValueError: bad label 11",
    "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:544] Connection closed by peer [10.0.0.2]:4242",
)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (PLAIN, "ValueError: bad label 11 (train.py:12)"),
        (CHAINED, "RuntimeError: no data (data.py:5)"),
        (SYNTAX, "SyntaxError: invalid syntax (train.py:3)"),
        (PLAIN.replace("\n", "\n[rank1]: ").replace("starting\n", "starting\n"), "ValueError: bad label 11 (train.py:12)"),
        (PLAIN.replace("ValueError: bad label 11", "KeyboardInterrupt"), "KeyboardInterrupt (train.py:12)"),
        (PLAIN.replace("ValueError", "mylib.errors.BadLabel"), "mylib.errors.BadLabel: bad label 11 (train.py:12)"),
        (PLAIN + "Exception ignored in: <function f>\nwarning: leaked\n", "ValueError: bad label 11 (train.py:12)"),
    ],
)
def test_the_sentence_names_the_exception_and_the_users_line(tmp_path: Path, text: str, error: str) -> None:
    assert explain(text, 1, None, False, tmp_path / "none")[0] == error


def test_a_chain_is_kept_whole() -> None:
    assert find_traceback("noise\n" + CHAINED + "noise\n").splitlines()[0] == "Traceback (most recent call last):"
    assert "FileNotFoundError" in find_traceback(CHAINED)


def test_a_traceback_that_was_handled_long_before_the_end_is_not_the_cause(tmp_path: Path) -> None:
    text = PLAIN + "step\n" * 100 + "config.yaml: no such key\n"
    assert explain(text, 1, None, False, tmp_path / "none")[:2] == ("config.yaml: no such key", "")


def test_without_a_traceback_the_last_line_speaks(tmp_path: Path) -> None:
    assert explain("a\npython: can't open file 'x.py'\n\n", 2, None, False, tmp_path / "none")[0] == "python: can't open file 'x.py'"
    assert explain("", 3, None, False, tmp_path / "none")[0] == "exit code 3, without any output"


def test_a_signal_is_named_and_an_oom_kill_says_what_to_do(tmp_path: Path) -> None:
    assert explain(PLAIN, None, 11, False, tmp_path / "none")[:2] == ("ended by SIGSEGV", "")
    assert "raise workers.resources" in explain("", None, 9, True, tmp_path / "none")[0]


@pytest.mark.parametrize(
    ("text", "exit_code", "number", "witness"),
    [
        (GLOO, 1, None, True),
        (PLAIN, 1, None, False),
        ("torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp\n", 1, None, True),
        ("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)\n", None, 6, True),
        ("torch.distributed.DistNetworkError: The client socket has timed out\n", 1, None, True),
        ("terminate called after throwing 'std::bad_alloc'\n", None, 6, False),
        (GLOO, None, 9, False),
        (GLOO + "retrying\n" * 50 + PLAIN, 1, None, False),
    ],
)
def test_who_failed_inside_a_collective_is_a_witness(
    tmp_path: Path, text: str, exit_code: int | None, number: int | None, witness: bool
) -> None:
    assert explain(text, exit_code, number, False, tmp_path / "none")[2] is witness


def test_torch_elastics_error_file_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    path.write_text(json.dumps({"message": {"message": "ValueError: x", "extraInfo": {"py_callstack": PLAIN[9:], "timestamp": "1"}}}))
    assert explain("", 1, None, False, path)[:1] == ("ValueError: bad label 11 (train.py:12)",)
    path.write_text("{")
    assert explain("last\n", 1, None, False, path)[0] == "last"


def test_long_tracebacks_keep_their_end(tmp_path: Path) -> None:
    frames = "".join(f'  File "/code/deep.py", line {n}, in f\n    f({n})\n' for n in range(200))
    text = "Traceback (most recent call last):\n" + frames + "RecursionError: too deep\n"
    error, traceback, _ = explain(text, 1, None, False, tmp_path / "none")
    assert error == "RecursionError: too deep (deep.py:199)"
    assert len(traceback.encode()) <= 4096 and traceback.endswith("RecursionError: too deep")


def test_an_exception_without_frames_of_the_user_names_the_deepest_one() -> None:
    text = 'Traceback (most recent call last):\n  File "/usr/lib/python3.11/runpy.py", line 5, in run\n    x\nImportError: no\n'
    assert sentence(text) == "ImportError: no (runpy.py:5)"


@pytest.mark.parametrize(
    ("membership", "file", "text"),
    [
        ("0::/pod\n", "pod/memory.events", "oom 1\noom_kill {}\n"),
        ("4:memory:/pod\n", "memory/pod/memory.oom_control", "under_oom 0\noom_kill {}\n"),
        ("0::/elsewhere\n", "memory.events", "oom_kill {}\n"),
    ],
)
def test_a_rising_oom_counter_is_seen_once(tmp_path: Path, membership: str, file: str, text: str) -> None:
    (tmp_path / "membership").write_text(membership)
    path = tmp_path / "root" / file
    path.parent.mkdir(parents=True)
    path.write_text(text.format(2))
    counter = OomCounter(tmp_path / "root", tmp_path / "membership")
    assert not counter.risen()
    path.write_text(text.format(3))
    assert [counter.risen(), counter.risen()] == [True, False]


def test_where_no_counter_can_be_read_nothing_was_oom_killed(tmp_path: Path) -> None:
    assert not OomCounter(tmp_path, tmp_path / "none").risen()


def test_an_error_file_of_any_length_leaves_a_message_that_can_be_sent(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    path.write_text(json.dumps({"message": "x" * 1_000_000}))
    error, _, _ = explain("", 1, None, False, path)
    assert error == "x" * 500
