"""A timetable: options that change by themselves, so many seconds after the simulator starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

_FORM = "has the form SECONDS:OPTION=VALUE, as in 30:capacity=0.5"


class Step(NamedTuple):
    """After `at_s` seconds these options change."""

    at_s: float
    changes: Mapping[str, Any]


def parse_step(text: str) -> Step:
    """The step that `30:capacity=0.5,latency_s=2` means. Raises ValueError with a sentence if it means none.

    A value is JSON; `none` is no value; what is neither is text.
    """
    moment, colon, assignments = text.partition(":")
    try:
        at_s = float(moment)
    except ValueError:
        colon = ""
    if not colon:
        raise ValueError(f"a timetable's step {_FORM}, not {text!r}")
    changes = {}
    for assignment in assignments.split(","):
        name, equals, value = assignment.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"a timetable's step {_FORM}, not {text!r}")
        changes[name.strip().replace("-", "_")] = _parse_value(value.strip())
    return Step(at_s, changes)


def as_timetable(value: object) -> tuple[Step, ...]:
    """The timetable of steps, pairs, or objects with `at_s` and options. Raises ValueError if it is none of these."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError("timetable must be a list of steps")
    return tuple(sorted((_as_step(one) for one in value), key=lambda step: step.at_s))


def _as_step(value: object) -> Step:
    if isinstance(value, Mapping):
        at_s: object = value.get("at_s")
        changes: object = {name: one for name, one in value.items() if name != "at_s"}
    elif isinstance(value, Sequence) and len(value) == 2:
        at_s, changes = value
    else:
        at_s, changes = None, None
    if (
        not isinstance(at_s, int | float)
        or isinstance(at_s, bool)
        or not 0 <= at_s < math.inf
        or not isinstance(changes, Mapping)
        or not changes
    ):
        raise ValueError("a timetable's step needs at_s, a number of seconds from 0, and an option to change")
    return Step(float(at_s), dict(changes))


def _parse_value(text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
