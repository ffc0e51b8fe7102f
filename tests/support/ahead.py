"""Jobs that are claimed ahead of one slot, whose call lasts as long as a test wants."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Event
from typing import Any

from tests.support.house import House
from tests.support.ledger import job_row, rows, state
from worker.attempt.report import Report, Verdict


class Endpoint:
    """Holds each call until a test lets it go."""

    def __init__(self, house: House) -> None:
        self.called: list[str] = []
        self._complete = house.client.complete
        self._let_go = Event()
        house.client.complete = self._call  # type: ignore[method-assign]

    def _call(self, body: bytes, *, job_id: str, **options: Any) -> Any:
        self.called.append(job_id)
        assert self._let_go.wait(20)
        return self._complete(body, job_id=job_id, **options)

    def answer(self) -> None:
        self._let_go.set()


def eventually(is_true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if is_true():
            return
        Event().wait(0.005)
    raise AssertionError("it never came true")


class Row:
    """One slot, and some jobs that want it: the first is in its call, the next are claimed, and others wait."""

    def __init__(self, house: House, *, jobs: int = 4, ahead: int = 2, **facts: Any) -> None:
        self.house, self.endpoint = house, Endpoint(house)
        self.ids = [house.put(is_bulk=True, **facts) for _ in range(jobs)]
        self.reports: list[Future[Report]] = []
        for id_ in self.ids:
            self.reports.append(house.receive(id_, is_bulk=True))
            eventually(lambda: len(house.writer.open_claims) == min(len(self.reports), 1 + ahead))
        eventually(lambda: self.endpoint.called == self.ids[:1])

    def states(self) -> list[str]:
        return [state(self.house.ledger, id_) for id_ in self.ids]

    def end(self) -> list[Verdict]:
        self.endpoint.answer()
        return [one.result(20).verdict for one in self.reports]

    def has_left_no_trace(self, id_: str) -> bool:
        """Nobody could tell that the job was ever claimed."""
        row = job_row(self.house.ledger, id_)
        assert (row.claims, row.attempts, row.claim_token, row.published_at_ms) == (0, 0, None, None)
        assert rows(self.house.ledger, "attempts", job_id=id_) == []
        assert id_ not in self.house.writer.open_claims
        return id_ not in self.endpoint.called
