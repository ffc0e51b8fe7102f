"""A batch's deadline: no job of it is called after that time. Jobs without a result by then are `expired`."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

from schemas.bounds import is_time_ms
from worker.clock import SystemClock
from worker.errors import InputError
from worker.storage.batches import Batch
from worker.storage.deadlines import (
    DEADLINE,
    find_other_expiry,
    find_same_expiry,
    note_deadline,
    set_expiry,
)
from worker.storage.engine import Ledger
from worker.text.printable import printable

_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000}
_DURATION = re.compile(r"(?:\d{1,9}[dhms])+")
_MILLISECOND = timedelta(milliseconds=1)
_PART = re.compile(r"(\d+)([dhms])")


def parse_deadline(text: str, *, now_ms: int) -> int:
    """UTC milliseconds of a duration from now (`45m`, `6h`, `1d12h`) or of a time with its zone, in the future.

    Raises InputError.
    """
    told = text.strip()
    if _DURATION.fullmatch(told):
        at_ms = now_ms + sum(int(number) * _UNITS_MS[unit] for number, unit in _PART.findall(told))
    else:
        at_ms = _parse_time(told)
    if not is_time_ms(at_ms):
        raise InputError(f"the deadline {printable(told)} is too far away")
    if at_ms <= now_ms:
        raise InputError(f"the deadline {printable(told)} is over already: no job would be called")
    return at_ms


def _parse_time(told: str) -> int:
    try:
        moment = datetime.fromisoformat(told)
    except ValueError:
        raise InputError(
            f"the deadline {printable(told)} is neither a duration such as 45m, 6h or 1d12h nor a time such as "
            "2026-07-02T06:00+02:00"
        ) from None
    if moment.tzinfo is None:
        raise InputError(
            f"the deadline {printable(told)} names no time zone: write {printable(told)}Z or {printable(told)}+02:00"
            if "T" in told or " " in told
            else f"the deadline {printable(told)} is a day: write a time with its zone, {printable(told)}T18:00Z"
        )
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // _MILLISECOND


def note_batch_deadline(ledger: Ledger, batch: Batch, at_ms: int | None) -> Batch:
    """The batch with this deadline, which jobs get that are written down from now on.

    None leaves the deadline that it has, unless that is over: then it has none any more, and nor have its open jobs. No
    worker may have lived to expire them.
    """
    if at_ms is None:
        if batch.deadline_ms is None or batch.deadline_ms > SystemClock().now_ms():
            return batch
        _lift_expiry(ledger, batch.id, batch.deadline_ms)
    ledger.run(partial(note_deadline, batch_id=batch.id, at_ms=at_ms))
    return replace(batch, details={**batch.details, DEADLINE: at_ms})


def apply_deadline(ledger: Ledger, batch: Batch) -> None:
    """Gives the batch's deadline, if it is not over, to all its open jobs. A few transactions of 500 jobs each.

    Jobs that belong to another batch, and that this one wants too, keep that one's.
    """
    at_ms = batch.deadline_ms
    if at_ms is None or at_ms <= SystemClock().now_ms():
        return
    while True:
        with ledger.read() as connection:
            ids = find_other_expiry(connection, batch.id, at_ms)
        if not ids:
            return
        ledger.run(partial(set_expiry, ids=ids, at_ms=at_ms))


def _lift_expiry(ledger: Ledger, batch_id: str, over_ms: int) -> None:
    """Lets the batch's open jobs whose deadline was `over_ms` never expire. A few transactions of 500 jobs each."""
    while True:
        with ledger.read() as connection:
            ids = find_same_expiry(connection, batch_id, over_ms)
        if not ids:
            return
        ledger.run(partial(set_expiry, ids=ids, at_ms=None))
