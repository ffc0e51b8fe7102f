"""What must hold in any ledger when everything has ended."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import func, select

from worker.storage.engine import Ledger
from worker.storage.tables import attempts, jobs, requests, results, usage


def states(ledger: Ledger) -> Counter[str]:
    """Jobs by state."""
    with ledger.read() as connection:
        rows = connection.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state)).all()
    return Counter(dict(rows))


def assert_sound(ledger: Ledger) -> None:
    """One result for each success and none for others; usage for each answered attempt; nobody holds a claim."""
    with ledger.read() as connection:
        succeeded = set(connection.execute(select(jobs.c.id).where(jobs.c.state == "succeeded")).scalars())
        with_result = list(connection.execute(select(results.c.job_id)).scalars())
        used = list(connection.execute(select(usage.c.job_id).where(usage.c.is_used)).scalars())
        answered = connection.execute(
            select(func.count()).where(attempts.c.outcome.in_(("succeeded", "unused")))
        ).scalar_one()
        paid = connection.execute(select(func.count()).select_from(usage)).scalar_one()
        bodies = connection.execute(select(func.count()).select_from(requests)).scalar_one()
        total = connection.execute(select(func.count()).select_from(jobs)).scalar_one()
        held = connection.execute(
            select(func.count()).where(
                jobs.c.worker_id.is_not(None), jobs.c.state.not_in(("running", "succeeded"))
            )
        ).scalar_one()
    assert sorted(with_result) == sorted(succeeded)
    assert sorted(used) == sorted(succeeded)
    assert answered == paid
    assert bodies == total
    assert held == 0
