"""PostgreSQL beside others: an address's own options, and a pooler in between."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.support.pooler import Pooler
from worker.settings import load_settings
from worker.storage.engine import Ledger, open_ledger
from worker.storage.errors import DatabaseAway
from worker.storage.migrating import is_current, migrate

pytestmark = pytest.mark.postgresql
_LIMITS = {"statement_timeout": "30s", "lock_timeout": "10s", "idle_in_transaction_session_timeout": "30s"}


@contextmanager
def opened(url: str) -> Iterator[Ledger]:
    ledger = open_ledger(load_settings(home=Path("/nonexistent"), database_url=url, _env_file=None))
    try:
        yield ledger
    finally:
        ledger.dispose()


@pytest.fixture
def url(postgres_url: Callable[[str], str]) -> str:
    return postgres_url(f"o{uuid.uuid4().hex[:12]}")


@pytest.fixture(params=["session", "transaction"])
def pooler(request: pytest.FixtureRequest, url: str) -> Iterator[Pooler]:
    # In session mode each client that is connected has one for itself.
    with closing(Pooler(url, mode=request.param, size=2 if request.param == "transaction" else 8)) as pooler:
        yield pooler


def show(ledger: Ledger, *names: str) -> dict[str, str]:
    with ledger.read() as connection:
        return {name: connection.execute(text(f"SHOW {name}")).scalar_one() for name in names}


def test_no_statement_lock_or_silent_transaction_lasts_for_ever(url: str) -> None:
    with opened(url) as ledger:
        assert show(ledger, *_LIMITS) == _LIMITS
        assert show(ledger, "application_name") == {"application_name": "antrean"}


def test_what_the_address_says_itself_is_kept(url: str) -> None:
    said = f"{url}&application_name=mine&options=-c%20statement_timeout%3D5s%20-c%20work_mem%3D9MB"
    with opened(said) as ledger:
        assert show(ledger, *_LIMITS, "work_mem", "application_name") == {
            **_LIMITS, "statement_timeout": "5s", "work_mem": "9MB", "application_name": "mine",
        }  # fmt: skip


def test_pgoptions_are_kept(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c lock_timeout=3s -c search_path=elsewhere,public")
    monkeypatch.setenv("PGAPPNAME", "theirs")
    with opened(url) as ledger:
        assert show(ledger, *_LIMITS, "search_path", "application_name") == {
            **_LIMITS, "lock_timeout": "3s", "search_path": "elsewhere,public", "application_name": "theirs",
        }  # fmt: skip


def test_migrate_works_through_a_pooler_in_either_mode(pooler: Pooler) -> None:
    with opened(pooler.url) as ledger:
        migrate(ledger)
        assert is_current(ledger)


def test_each_transaction_through_a_pooler_has_its_limits_and_leaves_none_behind(
    pooler: Pooler, url: str
) -> None:
    with opened(pooler.url) as ledger:
        assert show(ledger, *_LIMITS) == _LIMITS
        assert ledger.run(lambda c: c.execute(text("SHOW lock_timeout")).scalar_one()) == "10s"
        # As another program of the same pool, which never asked for limits, finds the session.
        with ledger.engine.connect() as plain:
            driver = plain.connection.driver_connection
            assert driver is not None
            assert driver.execute("SHOW statement_timeout").fetchone() == ("0",)


def test_more_connections_than_the_pooler_has_run_the_same_statements(pooler: Pooler) -> None:
    """In transaction mode each may meet a session in which another prepared its statements."""
    errors: list[Exception] = []

    def work(ledger: Ledger) -> None:
        try:
            for i in range(40):
                found = ledger.run(lambda c, i=i: c.execute(text("SELECT :i + 1"), {"i": i}).scalar_one())  # type: ignore[misc]
                assert found == i + 1
        except Exception as exc:
            errors.append(exc)

    with opened(pooler.url) as one, opened(pooler.url) as other:
        threads = [threading.Thread(target=work, args=(ledger,)) for ledger in (one, other, one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert errors == []


def test_a_transaction_that_fails_through_a_pooler_leaves_nothing(pooler: Pooler) -> None:
    with opened(pooler.url) as ledger:
        ledger.run(lambda c: c.execute(text("CREATE TABLE kept (n integer)")))

        def work(connection: object) -> None:
            connection.execute(text("INSERT INTO kept VALUES (1)"))  # type: ignore[attr-defined]
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            ledger.run(work)
        with ledger.read() as connection:
            assert connection.execute(text("SELECT count(*) FROM kept")).scalar_one() == 0


def test_options_that_a_pooler_does_not_take_are_told_with_the_way_out(pooler: Pooler) -> None:
    with (
        opened(f"{pooler.url}&options=-c%20work_mem%3D9MB") as ledger,
        pytest.raises(DatabaseAway, match=r"PGOPTIONS, or.*ignore_startup_parameters"),
    ):
        show(ledger, "work_mem")


def test_a_pooler_that_has_no_session_left_is_told_as_one(url: str) -> None:
    with closing(Pooler(url, mode="session", size=1)) as pooler, opened(pooler.url) as first:
        settings = load_settings(home=Path("/nonexistent"), database_url=pooler.url, _env_file=None)
        second = open_ledger(settings, answer_within_s=1.0)
        show(first, "lock_timeout")
        with pytest.raises(DatabaseAway, match=r"no answer for 1 s.*pool_size"):
            show(second, "lock_timeout")
        second.dispose()
