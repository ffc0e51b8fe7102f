"""Chooses among due jobs by their models, where jobs go to several endpoints. Never reads more than a few pages."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy import BindParameter, Connection, Select, bindparam, func, select, text, tuple_

from schemas.job import Due, JobState
from worker.storage.claims import SOLO_AFTER_LOSSES
from worker.storage.tables import MAX_ROWS, is_in, is_published, is_ready, jobs

PAGE = MAX_ROWS
_REST_S = 1.0

_endpoint: BindParameter[str] = bindparam("of_endpoint")
_IS_LONE = text("NOT jobs.is_bulk")  # as text, see due.py
_IS_UNHELD = jobs.c.batch_id.not_in(bindparam("held", expanding=True))
_PUBLISHED = (
    select(jobs.c.model, jobs.c.is_bulk, func.count())
    .where(is_published(), jobs.c.endpoint == _endpoint, jobs.c.losses < SOLO_AFTER_LOSSES, _IS_UNHELD)
    .group_by(jobs.c.model, jobs.c.is_bulk)
)
_JOB = select(jobs.c.id, jobs.c.priority, jobs.c.is_bulk, jobs.c.model).where(jobs.c.endpoint == _endpoint)
_READY = (
    _JOB.where(
        is_ready(),
        tuple_(jobs.c.priority, jobs.c.id) > tuple_(bindparam("after_first"), bindparam("after_id")),
    )
    .order_by(jobs.c.priority, jobs.c.id)
    .limit(PAGE)
)
_DUE = (
    _JOB.add_columns(jobs.c.not_before_ms)
    .where(
        is_in(JobState.WAITING),
        jobs.c.not_before_ms <= bindparam("now_ms"),
        jobs.c.not_before_ms >= bindparam("after_first"),  # so that the index is searched from there on
        tuple_(jobs.c.not_before_ms, jobs.c.id) > tuple_(bindparam("after_first"), bindparam("after_id")),
    )
    .order_by(jobs.c.not_before_ms, jobs.c.id)
    .limit(PAGE)
)
_OF_BATCH = jobs.c.batch_id == bindparam("of_batch")
_READY_OF_BATCH, _DUE_OF_BATCH = _READY.where(_OF_BATCH), _DUE.where(_OF_BATCH)
_READY_LONE, _DUE_LONE = _READY.where(_IS_LONE, _IS_UNHELD), _DUE.where(_IS_LONE, _IS_UNHELD)
_LOCK = (
    select(jobs.c.id).where(jobs.c.id.in_(bindparam("ids", expanding=True))).with_for_update(skip_locked=True)
)
_Place = tuple[int, str]
_FIRST: _Place = (-(2**31), "")
_DUE_PAGES = 4  # read on in one look: retries of an endpoint that is shut are seldom more


def _by_priority(row: Any) -> _Place:
    return row.priority, row.id


def _by_time(row: Any) -> _Place:
    return row.not_before_ms, row.id


def count_published_by_model(
    connection: Connection, endpoint: str, *, held: Collection[str] = ()
) -> Counter[tuple[bool, str]]:
    """The numbers of jobs that are published and not claimed, by `is_bulk` and model; as `due.count_published`."""
    rows = connection.execute(_PUBLISHED, {"of_endpoint": endpoint, "held": list(held)})
    return Counter({(bool(is_bulk), model): count for model, is_bulk, count in rows})


class ModelChoice:
    """Reads due jobs in their order and takes those that are wanted.

    A page is read from the beginning, and one from where the last wanted ones were found, of retries up to four: a
    million jobs that nobody wants now do not hide the ones behind them, and are not read each time. A batch of which no
    job can be called is left alone for a second.
    """

    def __init__(
        self,
        wants: Callable[[Due], bool],
        *,
        is_hopeless: Callable[[str], bool] = lambda model: False,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wants` is asked once for each job that may be taken, in their order.

        `is_hopeless`: whether no job of this model is wanted before `forget`.
        """
        self.wants = wants
        self._is_hopeless = is_hopeless
        self._monotonic_s = monotonic_s
        self._after: dict[str, tuple[int, str]] = {}
        self._rests_until_s: dict[str, float] = {}

    def forget(self) -> None:
        """Begins anew: other models are wanted."""
        self._after.clear()
        self._rests_until_s.clear()

    def ready_of(self, connection: Connection, endpoint: str, batch_id: str, at_most: int) -> list[Due]:
        """Ready jobs of a batch, at most so many."""
        place = f"b{batch_id}"
        if batch_id and self._rests(place):
            return []
        query = {"of_endpoint": endpoint, "of_batch": batch_id}
        return self._look(connection, _READY_OF_BATCH, query, at_most, place)

    def due_of(
        self, connection: Connection, endpoint: str, batch_id: str, at_most: int, now_ms: int
    ) -> list[Due]:
        """Retries of a batch that are due."""
        place = f"d{batch_id}"
        if batch_id and self._rests(place):
            return []
        query = {"of_endpoint": endpoint, "of_batch": batch_id, "now_ms": now_ms}
        return self._look(connection, _DUE_OF_BATCH, query, at_most, place, order=_by_time, pages=_DUE_PAGES)

    def lone_ready(
        self, connection: Connection, endpoint: str, at_most: int, held: Collection[str]
    ) -> list[Due]:
        """Ready lone jobs of any batch."""
        query = {"of_endpoint": endpoint, "held": list(held)}
        return self._look(connection, _READY_LONE, query, at_most, "lone")

    def lone_due(
        self, connection: Connection, endpoint: str, at_most: int, held: Collection[str], now_ms: int
    ) -> list[Due]:
        """Retries of lone jobs that are due."""
        query = {"of_endpoint": endpoint, "held": list(held), "now_ms": now_ms}
        return self._look(connection, _DUE_LONE, query, at_most, "lone due", order=_by_time, pages=_DUE_PAGES)

    def _rests(self, place: str) -> bool:
        now_s = self._monotonic_s()
        return self._rests_until_s.get(place, now_s) > now_s

    def _look(
        self,
        connection: Connection,
        page: Select[Any],
        query: dict[str, Any],
        at_most: int,
        place: str,
        *,
        order: Callable[[Any], _Place] = _by_priority,
        pages: int = 1,
    ) -> list[Due]:
        """The wanted jobs of the first page, and of at most `pages` from the remembered place on."""

        def read(after: _Place) -> Sequence[Any]:
            return connection.execute(page, {**query, "after_first": after[0], "after_id": after[1]}).all()

        rows = read(_FIRST)
        found = self._take(rows, at_most)
        is_hopeless = bool(rows) and self._are_hopeless(rows)  # all that was read, with nothing left out
        after = None
        while len(found) < at_most and len(rows) == PAGE and pages > 0:
            last = order(rows[-1])
            if after is None:
                after = max(last, self._after.get(place, last))
                is_hopeless = is_hopeless and after == last
            else:
                after = last
            rows = read(after)
            further = self._take(rows, at_most - len(found))
            found += further
            is_hopeless = is_hopeless and self._are_hopeless(rows)
            if len(rows) < PAGE:
                self._after.pop(place, None)
            else:
                self._after[place] = after if further else order(rows[-1])
            pages = 0 if further else pages - 1
        if is_hopeless and not found and len(rows) < PAGE:
            self._rests_until_s[place] = self._monotonic_s() + _REST_S
        return self._lock(connection, found)

    def _are_hopeless(self, rows: Sequence[Any]) -> bool:
        return all(map(self._is_hopeless, {row.model for row in rows}))

    def _take(self, rows: Sequence[Any], at_most: int) -> list[Due]:
        found: list[Due] = []
        for row in rows:
            if len(found) >= at_most:
                break
            job = Due(row.id, row.priority, bool(row.is_bulk), row.model)
            if self.wants(job):
                found.append(job)
        return found

    def _lock(self, connection: Connection, found: list[Due]) -> list[Due]:
        """Those of `found` that no other relay takes at this moment."""
        if not found:
            return []
        mine = set(connection.execute(_LOCK, {"ids": sorted(one.id for one in found)}).scalars())
        return [one for one in found if one.id in mine]
