"""The regular expressions of `metrics.fromLogs`: which are allowed, checked the same way by the operator and by the agent.

Python's `re` backtracks, and a pattern such as `(a+)+$` takes exponential time. So what can do that is refused with a sentence (nested or
many wide repeats, back-references, look-around), and a line is cut before it is searched. What remains is polynomial in `LINE_LIMIT`, and
the agent interrupts a search that takes long and drops its pattern. Standard library only, Python >= 3.9.
"""

import json
import re
from typing import Any, List, Match, Optional, Pattern, Tuple

try:
    from re import _parser as _sre  # type: ignore[attr-defined]
except ImportError:  # Python < 3.11
    import sre_parse as _sre

NAMES = ("step", "loss", "samples", "tokens", "samples_per_second", "total_steps")
LINE_LIMIT = 1024
"""Characters of a log line that are searched; the rest is ignored."""
PATTERN_LIMIT = 500
MAX_PATTERNS = 16


class PatternError(ValueError):
    """`args[0]` says what is wrong with a pattern and what to write instead."""


def check(name: str, pattern: str) -> Pattern[str]:
    """The compiled pattern, whose first group (or `(?P<value>...)`) gives the number. Raises `PatternError`."""
    if name not in NAMES:
        raise PatternError(f"metrics.fromLogs name {name!r} is unknown: write one of {', '.join(NAMES)}")
    if len(pattern) > PATTERN_LIMIT:
        raise PatternError(f"the pattern for {name} has {len(pattern)} characters: at most {PATTERN_LIMIT}")
    try:
        compiled = re.compile(pattern)
        tree = _sre.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise PatternError(f"the pattern for {name} is not a regular expression: {error}") from None
    if compiled.groups < 1:
        raise PatternError(f"the pattern for {name} has no group: put parentheses around the number, e.g. {name}=([0-9.]+)")
    _refuse_slow(tree, name, inside_repeat=False)
    return compiled


def _refuse_slow(tree: Any, name: str, inside_repeat: bool) -> int:
    """Raises `PatternError` for what can backtrack without bound; returns how many open repeats of anything (`.*`) `tree` holds."""
    wide = 0
    for operation, argument in tree:
        kind = str(operation)
        if kind in ("GROUPREF", "GROUPREF_EXISTS"):
            raise PatternError(f"the pattern for {name} uses a back-reference: only patterns that match in linear time are taken")
        if kind in ("ASSERT", "ASSERT_NOT"):
            raise PatternError(f"the pattern for {name} uses look-around: only patterns that match in linear time are taken")
        if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            _, high, body = argument
            many = int(high) > 1
            if many and inside_repeat:
                raise PatternError(f"the pattern for {name} repeats a repeat, like (a+)+: write it without the outer repeat")
            wide += _refuse_slow(body, name, inside_repeat or many)
            wide += int(high) > 100 and _is_wide(body)
        elif kind == "SUBPATTERN":
            wide += _refuse_slow(argument[-1], name, inside_repeat)
        elif kind == "ATOMIC_GROUP":
            wide += _refuse_slow(argument, name, inside_repeat)
        elif kind == "BRANCH":
            if inside_repeat:
                raise PatternError(f"the pattern for {name} repeats an alternative, like (a|b)*: use a character class or drop the repeat")
            wide += max(_refuse_slow(branch, name, inside_repeat) for branch in argument[1])
    if wide > 2:
        raise PatternError(
            f"the pattern for {name} has {wide} open repeats like .*: at most 2, so that a long line cannot stall the reader"
        )
    return wide


def _is_wide(body: Any) -> bool:
    """Whether a repeat of `body` can run over nearly any text."""
    for operation, argument in body:
        kind = str(operation)
        if kind in ("ANY", "NOT_LITERAL"):
            return True
        if kind == "IN" and any(str(item[0]) == "NEGATE" or "_NOT_" in str(item[1]) or "WORD" in str(item[1]) for item in argument):
            return True
        if kind == "SUBPATTERN" and _is_wide(argument[-1]):
            return True
    return False


def load(text: str) -> List[Tuple[str, Pattern[str]]]:
    """The patterns of the variable `LEPTON_METRICS_FROM_LOGS`: a JSON list of {"name", "pattern"}. Raises `PatternError`."""
    if not text:
        return []
    try:
        entries = json.loads(text)
        pairs = [(str(entry["name"]), str(entry["pattern"])) for entry in entries]
    except (ValueError, TypeError, KeyError):
        raise PatternError("LEPTON_METRICS_FROM_LOGS is not a JSON list of {name, pattern}") from None
    if len(pairs) > MAX_PATTERNS:
        raise PatternError(f"{len(pairs)} patterns: at most {MAX_PATTERNS}")
    return [(name, check(name, pattern)) for name, pattern in pairs]


def number(match: Match[str]) -> Optional[float]:
    """What the group `value`, else the first group, caught, if it is a number."""
    try:
        return float((match.group("value" if "value" in match.re.groupindex else 1) or "").replace(",", ""))
    except ValueError:
        return None
