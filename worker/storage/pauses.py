"""Pauses: jobs of a paused endpoint are not relayed and not claimed until an operator resumes it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, delete, select

from worker.storage.cleaning import clean_text
from worker.storage.tables import insert_or_ignore, pauses


@dataclass(frozen=True, slots=True)
class Pause:
    """A paused endpoint: since when, and the operator's reason, if one was given."""

    endpoint: str
    reason: str | None
    paused_at_ms: int


_COLUMNS = select(pauses.c.endpoint, pauses.c.reason, pauses.c.paused_at_ms)
# Built once, as it is executed with every turn of the relay.
_OF_ENDPOINT = _COLUMNS.where(pauses.c.endpoint == bindparam("of_endpoint"))


def pause(connection: Connection, endpoint: str, reason: str | None, now_ms: int) -> bool:
    """Pauses the endpoint. False if it was paused already; the first pause stays, with its time and reason."""
    done = connection.execute(
        insert_or_ignore(connection, pauses).returning(pauses.c.endpoint),
        {"endpoint": endpoint, "reason": clean_text(reason), "paused_at_ms": now_ms},
    )
    return done.first() is not None


def resume(connection: Connection, endpoint: str) -> bool:
    """Ends the endpoint's pause. False if it was not paused."""
    done = connection.execute(delete(pauses).where(pauses.c.endpoint == endpoint))
    return done.rowcount == 1


def fetch_pause(connection: Connection, endpoint: str) -> Pause | None:
    """The endpoint's pause, or None while its jobs may be claimed."""
    row = connection.execute(_OF_ENDPOINT, {"of_endpoint": endpoint}).one_or_none()
    return None if row is None else Pause(*row)


def fetch_pauses(connection: Connection) -> list[Pause]:
    """The pauses of all endpoints, by endpoint."""
    return [Pause(*row) for row in connection.execute(_COLUMNS.order_by(pauses.c.endpoint))]
