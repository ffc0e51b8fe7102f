"""A gate that is half open: after a good probe, a few calls go before all do. Pure.

One answer may be luck, and hundreds of calls that begin at once are what brings a weak endpoint down again. So three
probes must be answered before more have failed than were answered. It is so after 5xx, timeouts, broken connections and
pages. A key that was accepted once is accepted, and a model that answers is there: their gates open with the first
answer.
"""

from __future__ import annotations

from worker.policy.gates import Gate

ANSWERS = 3  # with so many the gate opens, the first good probe among them
AT_ONCE = 3  # over all workers
_NEXT_TRIAL_S = 0.25  # while these have no answer, one more after each such time: answers may take minutes


def count_needed(gate: Gate | None) -> int:
    """How many probes must be answered to open the gate."""
    return ANSWERS if gate is not None and gate.is_trouble else 1


def next_trial_after_s(live: int) -> float:
    """Seconds from the start of the latest call to the next one, while `live` calls have not ended."""
    return 0.0 if live < AT_ONCE else _NEXT_TRIAL_S
