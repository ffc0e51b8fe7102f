"""A COMMIT whose answer is lost: it is found to have happened or not, and acted on.

On SQLite there is no wire to lose it on: `tests/contract/test_ledger_lost_commit.py` loses it in the driver.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import select

from tests.support.arena import Arena
from tests.support.outage import assert_nobody_was_lost
from tests.support.proxy import Proxy
from worker.settings.database import PostgresqlAddress
from worker.storage.tables import workers

_COMMIT = b"COMMIT"
_IN_AN_ANSWER = b'"finish_reason"'  # only a record sends answers to the database

pytestmark = pytest.mark.parametrize(
    "arena", [pytest.param("postgresql", marks=pytest.mark.postgresql)], indirect=True
)


@pytest.fixture
def proxy(arena: Arena) -> Iterator[Proxy]:
    """A proxy in front of PostgreSQL, below a socket of the same name."""
    assert arena.postgres is not None
    folder = arena.folder / "px"
    folder.mkdir()
    proxy = Proxy(str(arena.postgres.socket), listen=folder / arena.postgres.socket.name)
    yield proxy
    proxy.close()


def start_worker(arena: Arena, slots: int) -> bytes:
    """The id of a worker behind the proxy."""
    address = arena.settings.ledger_address
    assert isinstance(address, PostgresqlAddress)
    through = address.with_parameters({"host": str(arena.folder / "px")}).render()
    arena.worker(concurrency=slots, database_url=through)
    with arena.ledger.read() as connection:
        [worker_id] = connection.execute(select(workers.c.id)).scalars()
    return str(worker_id).encode()


@pytest.mark.full
@pytest.mark.simulator("--latency", "0.4")
@pytest.mark.parametrize(
    ("whose", "in_a_row"),
    [  # two in a row: the second try is lost as well, and the spool and the beat have to find out
        ("claim", 1),
        pytest.param("claim", 2, marks=pytest.mark.storm),
        pytest.param("record", 1, marks=pytest.mark.storm),
        ("record", 2),
        pytest.param("any", 1, marks=pytest.mark.storm),
        pytest.param("any", 2, marks=pytest.mark.storm),
    ],
)
def test_a_commit_whose_answer_is_lost_again_and_again(
    arena: Arena, proxy: Proxy, whose: str, in_a_row: int
) -> None:
    slots, times = arena.size(40, 8), arena.size(10, 2)
    arena.queue(arena.size(1600, 90))
    worker_id = start_worker(arena, slots)
    after = {
        # A claim's message holds its token and the endpoint, a record's its token and an answer.
        "claim": (worker_id + b":", arena.settings.endpoint.encode()),
        "record": (worker_id + b":", _IN_AN_ANSWER),
        "any": (),
    }[whose]
    recovered_s = []
    for _ in range(times):
        proxy.swallow_answer_to(_COMMIT, after=after, times=in_a_row)
        arena.wait_for(proxy.swallowed.is_set, f"a commit of a {whose} is lost", within_s=20)
        recovered_s.append(arena.wait_for_progress())
    assert arena.ended() < arena.queued, "the faults came too late"
    arena.conclude(
        f"{times * in_a_row} COMMITs ({whose}) without an answer, {in_a_row} in a row",
        most_extra_calls=0,
        recover_s=max(recovered_s),
    )
    assert_nobody_was_lost(arena)
