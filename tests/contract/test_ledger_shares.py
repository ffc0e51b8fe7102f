"""The tokens that batches get of their endpoint, on both databases: by weight, over all relays, whatever jobs take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event

from schemas.job import Due
from tests.support.clock import FakeClock
from tests.support.ledger import ENDPOINT, a_job, at_once, claim_one, job_row, put, put_one
from tests.support.upkeep import Broker, add_worker
from worker.errors import BrokerAway
from worker.policy.fairness import Waiting
from worker.storage.batches import fetch_batch, make_batch
from worker.storage.claims import claim_jobs
from worker.storage.due import START, take_due
from worker.storage.engine import Ledger, Transaction
from worker.storage.weights import fetch_weights, set_weight
from worker.throttle.gatekeeper import Gatekeeper
from worker.throttle.store import MemoryGateStore
from worker.upkeep.batch_facts import BatchFacts
from worker.upkeep.relay import WINDOW_FLOOR, Relay

HEAVY, LIGHT = 1000, 100


class Site:
    """A ledger with some relays, each of a worker of its own, which call what is published and tell what it took."""

    def __init__(self, ledger: Ledger, clock: FakeClock, *, relays: int = 1, learns: bool = True) -> None:
        self.ledger, self.clock = ledger, clock
        self.broker = Broker(ledger)
        self.facts = [BatchFacts(clock, endpoint=ENDPOINT) for _ in range(relays)]
        self.relays = [
            Relay(
                ledger,
                self.broker.publish,
                self.broker,
                Gatekeeper(MemoryGateStore(), clock, probe_ttl_s=60.0),
                clock,
                endpoint=ENDPOINT,
                republish_after_s=1e6,
                facts=facts,
            )
            for facts in self.facts
        ]
        self.learns = learns
        self.tokens_of: dict[str, int] = {}
        self.batch_of: dict[str, str] = {}
        self.tokens = Counter[str]()

    def put(self, batch: str, jobs: int, *, tokens: int, weight: float | None = None, **facts: Any) -> None:
        """So many jobs of a batch, each of which will take so many tokens."""
        self.ledger.run(
            partial(
                make_batch,
                batch_id=batch,
                kind="submit",
                label=batch,
                endpoint=ENDPOINT,
                idempotency_key=batch,
                now_ms=1,
            )
        )
        if weight is not None:
            self.ledger.run(partial(set_weight, batch_id=batch, weight=weight))
        facts = {"batch_id": batch, "is_bulk": True} | facts
        self.tokens_of[batch] = tokens
        for start in range(0, jobs, 500):
            some = [a_job(**facts) for _ in range(min(500, jobs - start))]
            self.batch_of |= {job.id: batch for job in put(self.ledger, *some)}

    def tick(self, number: int = 0) -> Counter[str]:
        """A relay's turn, and all that it published is answered at once; the jobs of each batch."""
        self.broker.taken.clear()
        self.relays[number].tick()
        taken = list(self.broker.taken)
        if taken:
            self.ledger.run(
                lambda c: claim_jobs(
                    c, taken, worker_id="w1", token=taken[0], endpoint=ENDPOINT, now_ms=self.clock.now_ms()
                )
            )
        for id_ in taken:
            tokens = self.tokens_of[self.batch_of[id_]]
            self.tokens[self.batch_of[id_]] += tokens
            if self.learns:
                self.facts[number].note_answer(self.batch_of[id_], tokens=tokens, completion_tokens=10)
        self.clock.advance(1.0)
        return Counter(self.batch_of[id_] for id_ in taken)

    def tick_all(self, times: int) -> None:
        for _ in range(times):
            for number in range(len(self.relays)):
                self.tick(number)


@pytest.fixture
def make(ledger: Ledger, clock: FakeClock) -> Callable[..., Site]:
    return partial(Site, ledger, clock)


def test_the_tokens_are_shared_and_not_the_jobs(make: Callable[..., Site]) -> None:
    site = make()
    site.put("a", 300, tokens=HEAVY)
    site.put("b", 900, tokens=LIGHT)
    site.tick()  # nothing is known of either yet
    site.tokens.clear()
    site.tick_all(20)
    assert abs(site.tokens["a"] - site.tokens["b"]) <= 2 * HEAVY
    assert site.tokens["b"] > 20 * HEAVY


def test_twice_the_weight_is_twice_the_tokens_also_over_several_relays(make: Callable[..., Site]) -> None:
    site = make(relays=3)
    site.put("a", 500, tokens=HEAVY, weight=2.0)
    site.put("b", 1500, tokens=LIGHT)
    for number in range(3):
        site.tick(number)
    site.tokens.clear()
    site.tick_all(13)
    # Each relay is fair to a job of the larger kind.
    assert abs(site.tokens["a"] - 2 * site.tokens["b"]) <= 3 * 2 * HEAVY
    assert site.tokens["a"] > 60 * HEAVY


def test_a_weight_that_is_changed_counts_within_seconds(make: Callable[..., Site], ledger: Ledger) -> None:
    site = make()
    for batch in "ab":
        site.put(batch, 400, tokens=LIGHT)
    assert site.tick() == {"a": WINDOW_FLOOR / 2, "b": WINDOW_FLOOR / 2}
    ledger.run(partial(set_weight, batch_id="b", weight=3.0))
    site.tick_all(2)
    assert site.tick() == {"a": WINDOW_FLOOR / 4, "b": WINDOW_FLOOR * 3 / 4}


def test_before_any_answer_the_requests_tell_what_they_will_take(make: Callable[..., Site]) -> None:
    site = make(learns=False)
    body = '{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"%s"}]}'
    site.put("a", 60, tokens=HEAVY, body=body % ("word " * 3000))
    site.put("b", 60, tokens=LIGHT, body=body % ("word " * 300))
    jobs = site.tick()
    assert jobs["a"] + jobs["b"] == WINDOW_FLOOR
    assert 6 <= jobs["b"] / jobs["a"] <= 12, "the first job of each comes at once"


def test_what_answers_took_replaces_the_guess(make: Callable[..., Site]) -> None:
    """A short prompt with long answers."""
    site = make()
    site.put("a", 200, tokens=HEAVY, body='{"model":"m"}')
    site.put("b", 200, tokens=LIGHT, body='{"model":"m","messages":"%s"}' % ("word " * 1000))
    assert site.tick()["a"] > site.tick()["a"] < 5


def test_a_batch_that_waits_for_its_turn_is_not_starved_by_a_stream_of_new_ones(
    make: Callable[..., Site],
) -> None:
    site = make()
    site.put("m", 300, tokens=HEAVY)
    site.tick()
    site.tokens.clear()
    body = '{"max_tokens":1,"messages":"%s"}' % ("x" * (4 * LIGHT - 31))
    for number in range(30):
        site.put(f"x{number:02}", 400, tokens=LIGHT, body=body)
        site.tick()
    assert site.tokens["m"] >= max(tokens for batch, tokens in site.tokens.items() if batch != "m") - HEAVY


def test_lone_jobs_come_before_all_batches(make: Callable[..., Site], ledger: Ledger) -> None:
    site = make()
    site.put("a", 300, tokens=HEAVY, weight=100.0)
    lone = [put_one(ledger) for _ in range(5)]
    site.batch_of |= dict.fromkeys(lone, "")
    site.tokens_of[""] = LIGHT
    site.broker.taken.clear()
    site.relays[0].tick()
    assert set(site.broker.taken[:5]) == set(lone)


def test_jobs_that_did_not_reach_the_broker_are_not_charged(make: Callable[..., Site]) -> None:
    site = make()
    site.put("a", 100, tokens=HEAVY)
    site.put("b", 100, tokens=HEAVY)
    before = site.relays[0]._account
    site.broker.is_away = True
    with pytest.raises(BrokerAway):
        site.relays[0].tick()
    assert site.relays[0]._account == before
    site.broker.is_away = False
    assert site.tick() == {"a": WINDOW_FLOOR / 2, "b": WINDOW_FLOOR / 2}


def test_facts_cost_no_query_a_job_and_none_at_most_turns(
    make: Callable[..., Site], ledger: Ledger, clock: FakeClock
) -> None:
    site = make()
    add_worker(ledger, "w1", clock, slots=100)
    for batch in "abc":
        site.put(batch, 400, tokens=LIGHT)
    seen: list[str] = []

    def listen(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "requests" in statement or "batches.weight" in statement:
            seen.append(statement)

    counts = []
    for _ in range(4):
        event.listen(ledger.engine, "before_cursor_execute", listen)
        site.relays[0].tick()
        event.remove(ledger.engine, "before_cursor_execute", listen)
        counts.append((len(seen), len(site.broker.taken)))
        seen.clear()
        taken, site.broker.taken = site.broker.taken, []
        for id_ in taken:
            site.facts[0].note_answer(site.batch_of[id_], tokens=LIGHT, completion_tokens=1)
        ledger.run(
            lambda c, taken=taken: claim_jobs(
                c, taken, worker_id="w1", token=taken[0], endpoint=ENDPOINT, now_ms=clock.now_ms()
            )
        )
        clock.advance(0.9)
    assert [jobs for _, jobs in counts] == [200] * 4
    assert [queries for queries, _ in counts] == [1 + 3, 0, 0, 1]


def test_of_very_many_unknown_batches_few_are_looked_at_in_a_turn(
    make: Callable[..., Site], ledger: Ledger, clock: FakeClock
) -> None:
    site = make(learns=False)
    add_worker(ledger, "w1", clock, slots=100)
    for number in range(70):
        site.put(f"b{number:02}", 3, tokens=LIGHT)
    seen: list[str] = []

    def listen(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "requests" in statement and "published_at_ms IS NULL" in statement:
            seen.append(statement)

    event.listen(ledger.engine, "before_cursor_execute", listen)
    assert sum(site.tick().values()) == 200
    assert len(seen) == 32
    assert sum(site.tick().values()) == 10
    event.remove(ledger.engine, "before_cursor_execute", listen)
    assert 0 < len(seen) - 32 <= 10, "those that are left and were not looked at"


def test_relays_at_once_share_the_tokens(ledger: Ledger) -> None:
    """Each with an account of its own, on one database at the same time."""
    batch_of: dict[str, str] = {}
    for batch, jobs in (("a", 200), ("b", 400)):
        some = [a_job(batch_id=batch, is_bulk=True) for _ in range(jobs)]
        batch_of |= {job.id: batch for job in put(ledger, *some)}
    tokens = {"a": HEAVY, "b": LIGHT}

    def describe(_: Transaction, turns: Sequence[Any]) -> list[Waiting]:
        return [Waiting(turn.batch_id, tokens[turn.batch_id]) for turn in turns]

    def relay(i: int) -> list[str]:
        mine: list[str] = []
        account = START
        for _ in range(20):
            due: list[Due]
            due, account = ledger.run(
                lambda c, account=account: take_due(
                    c, ENDPOINT, room=3, account=account, now_ms=1, describe=describe
                )
            )
            mine += [job.id for job in due]
        return mine

    taken = [id_ for mine in at_once(4, relay) for id_ in mine]
    assert len(taken) == len(set(taken)) == 4 * 20 * 3
    sums = Counter[str]()
    for id_ in taken:
        sums[batch_of[id_]] += tokens[batch_of[id_]]
    assert abs(sums["a"] - sums["b"]) <= 4 * HEAVY


@pytest.fixture
def batch(ledger: Ledger) -> str:
    """A batch as an older version makes it: it does not know of weights."""
    with ledger.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO batches (id, kind, label, endpoint, total, created_at_ms, details)"
            f" VALUES ('old', 'submit', 'old', '{ENDPOINT}', 1, 1, '{{}}')"
        )
    return "old"


def test_a_batch_of_an_older_version_has_the_usual_weight_until_it_is_given_another(
    ledger: Ledger, batch: str
) -> None:
    def weigh() -> tuple[float, dict[str, float]]:
        with ledger.read() as connection:
            found = fetch_batch(connection, batch)
            assert found is not None
            return found.weight, fetch_weights(connection, [batch, "nobody"])

    assert weigh() == (1.0, {})
    ledger.run(partial(set_weight, batch_id=batch, weight=2.5))
    assert weigh() == (2.5, {batch: 2.5})


def test_a_claim_tells_the_batch_and_the_priority_of_its_job(ledger: Ledger) -> None:
    job = claim_one(ledger, put_one(ledger, batch_id="b", priority=7, is_bulk=True))
    assert (job.batch_id, job.priority) == ("b", 7)
    assert job_row(ledger, job.id).batch_id == "b"
