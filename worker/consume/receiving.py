"""Receiving messages. The job of a hint is claimed at once, that of another message when its request is a row."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from worker.attempt.dispatch import Dispatcher, Received
from worker.attempt.report import GIVEN_BACK, Report, Verdict
from worker.clock import Clock
from worker.consume.delivery import read_message, write_down
from worker.consume.request import BlankRequest
from worker.errors import tell_place
from worker.settings import Settings
from worker.storage.errors import WriterStopped
from worker.storage.writer import GroupWriter

log = structlog.get_logger(__name__)


class Receiver:
    """Receives messages; one for a process. `receive` does not block: `spawn` runs what blocks in another thread."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        writer: GroupWriter,
        settings: Settings,
        clock: Clock,
        *,
        spawn: Callable[[Callable[[], None]], object],
    ) -> None:
        self._dispatcher = dispatcher
        self._writer = writer
        self._settings = settings
        self._clock = clock
        self._spawn = spawn

    def receive(self, request: BlankRequest) -> None:
        """Begins with a message. Its request gets the report in the end. Raises RuntimeError if no thread can start."""
        if request.hinted_job is None:
            self._spawn(lambda: self._write_down(request))
        else:
            self._dispatcher.receive(
                Received(
                    request.hinted_job,
                    request.is_bulk,
                    request.finish,
                    request.begin,
                    model=request.hinted_model,
                )
            )

    def _write_down(self, request: BlankRequest) -> None:
        report = None
        try:
            found = read_message(request, self._settings)
            if isinstance(found, str):
                job_id = found
            else:
                job_id = found.id
                report = write_down(self._writer, found, now_ms=self._clock.now_ms())
        except WriterStopped:
            report = GIVEN_BACK
        except Exception as exc:
            log.error("message.broke", task_id=request.id, error=type(exc).__name__, where=tell_place(exc))
            report = Report(Verdict.BROKE, type(exc).__name__)
        if report is not None:
            request.finish(report)
            return

        def finish(report: Report) -> None:
            if report.verdict is Verdict.NO_CLAIM:
                log.info("message.no_claim", task_id=job_id)
            request.finish(report)

        self._dispatcher.receive(Received(job_id, request.is_bulk, finish, request.begin))
