"""`metrics.fromLogs`: what is taken, what is refused and why."""

import pytest

from lepton_trainer.protocol.patterns import PatternError, check, load, number


@pytest.mark.parametrize(
    ("pattern", "line", "value"),
    [
        (r"loss[:=]\s*([0-9.eE+-]+)", "epoch 3 loss: 1.25e-3", 1.25e-3),
        (r"step (\d+)/\d+.*", "step 12/100 it/s=3", 12),
        (r"(?P<value>nan|[\d.]+) loss", "nan loss", float("nan")),
        (r"\{'loss': ([\d.]+), .*\}", "{'loss': 0.5, 'epoch': 1}", 0.5),
        (r"samples=([\d,]+)", "samples=1,024", 1024),
        (r"iter\s+\d+\s*\|\s*loss\s+([\d.]+)", "iter  3 | loss 2.5", 2.5),
    ],
)
def test_usual_patterns_give_their_number(pattern: str, line: str, value: float) -> None:
    match = check("loss", pattern).search(line)
    assert match is not None and repr(number(match)) == repr(float(value))


@pytest.mark.parametrize(
    ("name", "pattern", "says"),
    [
        ("loss", "(a+)+$", "repeats a repeat"),
        ("loss", "((?:ab*)*)c", "repeats a repeat"),
        ("loss", "(a|aa)+$", "repeats an alternative"),
        ("loss", r"(a)\1", "back-reference"),
        ("loss", "(?=a)(b)", "look-around"),
        ("loss", "(?<!a)(b)", "look-around"),
        ("loss", "(.*)(.*)(.*)x", "3 open repeats"),
        ("loss", "loss", "has no group"),
        ("loss", "(", "is not a regular expression"),
        ("loss", "(a)" + "b" * 500, "at most 500"),
        ("colour", "(a)", "write one of step, loss"),
    ],
)
def test_what_could_stall_or_means_nothing_is_refused_with_a_sentence(name: str, pattern: str, says: str) -> None:
    with pytest.raises(PatternError, match=says):
        check(name, pattern)


def test_the_variable_must_be_a_list_of_patterns() -> None:
    assert load("") == []
    assert [name for name, _ in load('[{"name": "loss", "pattern": "loss=([0-9.]+)"}]')] == ["loss"]
    for text in ("x", "{}1", '["a"]', '[{"name": "loss"}]'):
        with pytest.raises(PatternError, match="JSON list"):
            load(text)
