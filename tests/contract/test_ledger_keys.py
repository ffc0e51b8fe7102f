"""Several keys at one endpoint, and several workers with keys of their own: one that is refused holds nobody up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from api_client.config import Credential, HeaderStyle
from api_client.errors import ApiError
from schemas.failure import FailureKind
from tests.support.house import House
from tests.support.ledger import job_row, rows, state
from worker.attempt.credentials import Credentials
from worker.attempt.models_probe import choose_credential
from worker.attempt.report import Verdict
from worker.policy.gates import Admission, Gate
from worker.settings import load_settings
from worker.storage.engine import Ledger
from worker.throttle.store import KeyName, MemoryGateStore

A, B, C = "sk-a", "sk-b", "sk-c"
Build = Callable[..., House]


@pytest.fixture
def ledger(sqlite_ledger: Ledger) -> Ledger:
    return sqlite_ledger


def watch(house: House) -> Counter[str | None]:
    """Counts the calls of each key from now on."""
    calls: Counter[str | None] = Counter()
    complete = house.client.complete

    def counting(body: bytes, *, credential: Credential, **options: Any) -> Any:
        calls[credential.key] += 1
        return complete(body, credential=credential, **options)

    house.client.complete = counting  # type: ignore[method-assign, assignment]
    return calls


def served(house: House, jobs: int, *, every_s: float = 0.0) -> None:
    """So many jobs succeed, one after the other, and none burns an attempt."""
    for _ in range(jobs):
        id_ = house.put()
        assert house.execute(id_) is Verdict.SUCCEEDED
        assert job_row(house.ledger, id_).attempts == 0
        house.clock.advance(every_s)


def set_aside(house: House) -> list[str]:
    """The places of the keys that are set aside."""
    found = [(name.place, house.store.of_key(name).fetch()) for name in house.credentials.names()]
    return [place for place, gate in found if gate is not None]


def test_calls_are_spread_evenly_over_the_keys(build: Build) -> None:
    house = build(simulated={"key": f"{A},{B},{C}"}, api_keys=f"{A}, {B},{C},{A}")
    calls = watch(house)
    served(house, 30)
    assert calls == {A: 10, B: 10, C: 10}


@pytest.mark.parametrize(
    ("simulated", "kind"),
    [({"key": f"{A},{C}"}, "unauthorized"), ({"key": f"{A},{B},{C}", "spent_keys": B}, "quota")],
)
def test_a_refused_key_is_set_aside_and_its_job_goes_on_with_another_at_once(
    build: Build, simulated: dict[str, Any], kind: str
) -> None:
    house = build(simulated=simulated, api_keys=f"{A},{B},{C}", auth_style="bearer")
    calls = watch(house)
    served(house, 31)
    assert calls[B] == 1
    assert calls[A] + calls[C] == 31
    assert abs(calls[A] - calls[C]) <= 2
    assert set_aside(house) == ["ANTREAN_API_KEYS, key 2"]
    assert house.gates.admission()[0] is Admission.OPEN
    gate = house.fetch_gate()
    assert gate is not None and gate.kind.value == kind
    assert {one.outcome for one in rows(house.ledger, "attempts")} == {"succeeded"}


def test_a_key_that_was_set_aside_is_tried_ever_more_rarely_and_takes_its_turns_again(build: Build) -> None:
    house = build(simulated={"key": A}, api_keys=f"{A},{B}", auth_style="bearer")
    calls = watch(house)
    served(house, 260, every_s=1.0)
    assert 6 <= calls[B] <= 12, "after 1, 2, 4, 8 … 60 s, and once more with a job that was not refused"
    house.simulator.set_faults(key=f"{A},{B}")
    served(house, 62, every_s=1.0)
    assert set_aside(house) == []
    calls.clear()
    served(house, 20)
    assert calls == {A: 10, B: 10}


def test_with_all_keys_set_aside_the_gate_shuts_as_with_one_and_no_attempt_is_burnt(build: Build) -> None:
    house = build(simulated={"key": C}, api_keys=f"{A},{B}", auth_style="bearer")
    calls = watch(house)
    first, second = house.put(), house.put()
    assert [house.execute(id_) for id_ in (first, second)] == [Verdict.WAITING, Verdict.NOT_ADMITTED]
    assert calls == {A: 1, B: 1}
    row = job_row(house.ledger, first)
    assert (row.state, row.attempts, row.failure_kind) == ("waiting", 0, "unauthorized")
    assert house.gates.room(64) == 0
    house.simulator.set_faults(key=f"{A},{B}")
    house.again(first)
    assert house.execute(second) is house.execute(first) is Verdict.SUCCEEDED


def test_a_job_that_every_key_refuses_while_others_are_served_fails_and_no_key_stays_aside(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = build(simulated={"key": f"{A},{B}"}, api_keys=f"{A},{B}", auth_style="bearer")
    served(house, 2)
    odd = house.put()
    complete = house.client.complete

    def refuse(body: bytes, *, credential: Credential, job_id: str) -> Any:
        own = Credential("sk-wrong") if job_id == odd else credential
        return complete(body, credential=own, job_id=job_id)

    monkeypatch.setattr(house.client, "complete", refuse)
    assert house.execute(odd) is Verdict.WAITING
    assert len(set_aside(house)) == 2
    house.clock.advance(1.1)
    served(house, 4)
    house.again(odd, after_s=70)
    assert house.execute(odd) is Verdict.FAILED
    assert set_aside(house) == []
    assert job_row(house.ledger, odd).failure_kind == "unauthorized"


def test_a_wrong_key_makes_one_call_a_probe_in_the_two_header_styles_by_turns(build: Build) -> None:
    house = build(simulated={"key": B}, api_key=A)
    styles: list[HeaderStyle] = []
    complete = house.client.complete

    def noting(body: bytes, *, credential: Credential, **options: Any) -> Any:
        styles.append(credential.style)
        return complete(body, credential=credential, **options)

    house.client.complete = noting  # type: ignore[method-assign, assignment]
    id_ = house.put()
    for _ in range(5):
        assert house.execute(id_) is Verdict.WAITING
        house.again(id_, after_s=70)
    bearer, api_key = HeaderStyle.BEARER, HeaderStyle.API_KEY
    assert styles == [bearer, api_key, bearer, api_key, bearer, api_key]
    house.simulator.set_faults(key=A, auth_header="api-key")
    while house.execute(id_) is not Verdict.SUCCEEDED:
        house.again(id_, after_s=70)
    assert len(styles) <= 8


def test_the_header_style_is_learnt_for_each_key() -> None:
    known = Credentials(load_settings(api_keys=f"{A},{B}", _env_file=None), "ledger")
    first, second = known.fetch()
    known.worked(first)
    other = known.other_style(second)
    assert other is not None and other.style is HeaderStyle.API_KEY
    known.worked(other)
    assert known.other_style(first) is None
    assert [one.style for one in known.fetch()] == [HeaderStyle.BEARER, HeaderStyle.API_KEY]


def test_a_key_has_a_name_that_does_not_tell_it_and_is_another_in_another_ledger() -> None:
    def names(identity: str) -> list[KeyName]:
        return list(Credentials(load_settings(api_keys=f"{A},{B}", _env_file=None), identity).names())

    here, there = names("one"), names("two")
    assert [one.place for one in here] == ["ANTREAN_API_KEYS, key 1", "ANTREAN_API_KEYS, key 2"]
    assert len({one.id for one in here + there}) == 4
    assert all(len(one.id) == 12 and set(one.id) <= set("0123456789abcdef") for one in here)
    assert "sk-" not in repr(here) and "sk-" not in repr(Credentials(load_settings(api_key=A), "x").fetch())


def test_a_probe_of_a_key_that_meets_an_error_of_the_server_decides_nothing_and_the_next_comes_a_second_later(
    build: Build,
) -> None:
    house = build(simulated={"key": C}, api_key=A, auth_style="bearer")
    for _ in range(3):  # then any job may be the probe, not only one that was not refused
        assert house.execute(house.put()) is Verdict.WAITING
        house.clock.advance(70)
    house.simulator.set_faults(key=A, rate_500=1.0)
    assert house.execute(house.put()) is Verdict.WAITING
    assert house.execute(house.put()) is Verdict.NOT_ADMITTED, "nobody knows yet whether the key is good"
    house.clock.advance(1.1)
    house.simulator.set_faults(rate_500=0.0)
    served(house, 2)
    assert house.fetch_gate() is None


def test_a_rate_limit_of_one_key_is_waited_out_by_that_key_alone(build: Build) -> None:
    house = build(simulated={"key": f"{A},{B}", "rate_429": 1.0, "retry_after_s": 30.0}, api_keys=f"{A},{B}")
    calls = watch(house)
    first, second = house.put(), house.put()
    assert house.execute(first) is Verdict.WAITING
    assert job_row(house.ledger, first).not_before_ms - house.clock.now_ms() <= 2000, "the other key is free"
    house.simulator.set_faults(rate_429=0.0)
    assert house.execute(second) is Verdict.SUCCEEDED
    served(house, 9)
    assert calls == {A: 1, B: 10}
    house.clock.advance(31)
    calls.clear()
    served(house, 10)
    assert calls == {A: 5, B: 5}


def test_with_every_key_at_its_rate_limit_nobody_calls_for_as_long_as_was_asked(build: Build) -> None:
    house = build(simulated={"key": f"{A},{B}", "rate_429": 1.0, "retry_after_s": 30.0}, api_keys=f"{A},{B}")
    ids = [house.put() for _ in range(3)]
    assert [house.execute(id_) for id_ in ids] == [Verdict.WAITING, Verdict.WAITING, Verdict.NOT_ADMITTED]
    assert job_row(house.ledger, ids[1]).not_before_ms - house.clock.now_ms() >= 30_000
    assert house.gates.room(64) == 0
    assert house.simulator.stats()["calls"] == 2
    assert job_row(house.ledger, ids[0]).attempts == job_row(house.ledger, ids[1]).attempts == 0
    house.clock.advance(31)
    assert house.gates.room(64) == 64


# Two workers at one endpoint


@pytest.fixture
def pair(build: Build) -> tuple[House, House]:
    """A worker whose key the endpoint refuses, and one whose key it takes."""
    store = MemoryGateStore()
    options = {"simulated": {"key": A}, "store": store, "endpoint_name": "e", "auth_style": "bearer"}
    return build(api_key=B, **options), build(api_key=A, **options)


def test_a_refused_key_of_one_worker_holds_up_no_other_worker(pair: tuple[House, House]) -> None:
    wrong, right = pair
    first = wrong.put()
    assert wrong.execute(first) is Verdict.WAITING
    assert wrong.execute(wrong.put()) is Verdict.NOT_ADMITTED
    served(right, 5)
    assert wrong.gates.room(64) == 0
    assert right.gates.room(64) == 64
    right.again(first)
    assert right.execute(first) is Verdict.SUCCEEDED
    assert job_row(right.ledger, first).attempts == 0


def test_while_another_worker_serves_a_worker_without_a_usable_key_fetches_nothing_but_its_probes(
    pair: tuple[House, House],
) -> None:
    wrong, right = pair
    for one in pair:
        one.gates.room(64)  # the relay's tick, which names the keys in use
    assert wrong.gates.room_to_fetch() is None
    id_ = wrong.put()
    assert wrong.execute(id_) is Verdict.WAITING
    wrong.clock.advance(0.5)
    wrong.gates.room(64)
    assert wrong.gates.room_to_fetch() == 0
    assert right.gates.room_to_fetch() is None
    wrong.clock.advance(60)
    assert wrong.gates.room_to_fetch() == 1
    served(right, 1)
    wrong.simulator.set_faults(key=f"{A},{B}")
    served(wrong, 1)
    assert wrong.gates.room_to_fetch() is None


def test_where_no_other_worker_serves_messages_are_fetched_as_ever(build: Build) -> None:
    house = build(api_key="sk-wrong")
    house.gates.room(64)
    assert house.execute(house.put()) is Verdict.WAITING
    house.clock.advance(2)
    house.gates.room(64)
    assert house.gates.room_to_fetch() is None


def test_a_job_that_one_workers_key_was_refused_for_is_due_at_once_where_another_worker_serves(
    pair: tuple[House, House],
) -> None:
    wrong, right = pair
    for one in pair:
        one.gates.room(64)
    id_ = wrong.put()
    for _ in range(6):  # its gate is shut for half a minute by now
        wrong.clock.advance(70)
        wrong.execute(id_)
        right.gates.room(64)
        if state(wrong.ledger, id_) == "waiting":
            assert job_row(wrong.ledger, id_).not_before_ms - wrong.clock.now_ms() <= 2000
            wrong.again(id_, after_s=3)
    assert right.execute(id_) is Verdict.SUCCEEDED


def test_an_outage_shuts_the_gate_for_all_keys(pair: tuple[House, House]) -> None:
    wrong, right = pair
    right.gates.shut(FailureKind.SERVER_ERROR, asked_s=None)
    wrong.clock.advance(0.5)
    assert [one.execute(one.put()) for one in pair] == [Verdict.NOT_ADMITTED] * 2
    right.clock.advance(1)
    served(right, 2)
    gate = right.fetch_gate()
    assert gate is not None and gate.is_half_open
    served(right, 1)
    assert right.fetch_gate() is None


def test_an_outage_beside_a_refused_key_ends_with_the_first_answer_of_another_key(build: Build) -> None:
    house = build(simulated={"key": A}, api_keys=f"{A},{B}", auth_style="bearer")
    served(house, 3)
    assert set_aside(house) == ["ANTREAN_API_KEYS, key 2"]
    house.gates.shut(FailureKind.SERVER_ERROR, asked_s=None)
    house.clock.advance(2)
    served(house, 3)
    assert house.store.fetch() is None


def test_a_gate_that_a_worker_of_an_older_version_shut_for_its_key_is_obeyed_and_opened(build: Build) -> None:
    house = build(simulated={"key": A}, api_key=A)
    now_ms = house.clock.now_ms()
    house.store.put(
        Gate(FailureKind.UNAUTHORIZED, now_ms + 4000, 3, needs_probe=True, wait_ms=4000, struck_ms=now_ms)
    )
    assert house.execute(house.put()) is Verdict.NOT_ADMITTED
    house.clock.advance(5)
    served(house, 2)
    assert house.store.fetch() is None


# Limits that are told, outages, and gates that somebody opens


def test_a_limit_that_an_answer_says_is_reached_keeps_off_the_key_it_was_told_of(build: Build) -> None:
    house = build(simulated={"key": f"{A},{B}"}, api_keys=f"{A},{B}")
    served(house, 2)
    with house.gates.admit("job") as permit:
        kept_off = permit.key
        house.gates.keep_off(20.0, permit)
    assert kept_off is not None
    assert house.store.fetch() is None and set_aside(house) == [kept_off.place]
    calls = watch(house)
    served(house, 6)
    assert len(calls) == 1
    house.clock.advance(21)
    served(house, 6)
    assert len(calls) == 2


def test_the_endpoint_is_asked_for_its_models_with_a_key_that_is_not_set_aside(build: Build) -> None:
    house = build(simulated={"key": B}, api_keys=f"{A},{B}", auth_style="bearer")
    served(house, 2)
    assert set_aside(house) == ["ANTREAN_API_KEYS, key 1"]
    assert choose_credential(house.gates, house.credentials).key == B


def test_a_key_that_cannot_be_had_is_a_refusal_when_the_endpoint_is_asked_for_its_models(
    build: Build,
) -> None:
    house = build(simulated={"key": A}, api_key_command="false")
    with pytest.raises(ApiError) as caught:
        choose_credential(house.gates, house.credentials)
    assert (caught.value.failure.kind, caught.value.failure.was_sent) == (FailureKind.UNAUTHORIZED, False)


@pytest.mark.parametrize(("keys", "restarts"), [(A, 1), (f"{A},{B}", 0)])
def test_all_calls_begin_again_after_the_gate_of_the_only_key_and_not_after_that_of_one_of_two(
    build: Build, keys: str, restarts: int
) -> None:
    house = build(simulated={"key": f"{A},{B}"}, api_keys=keys)
    served(house, 2)
    before = house.gates.restarts
    with house.gates.admit("job") as permit:
        house.gates.shut(FailureKind.QUOTA, asked_s=None, permit=permit, job_id="job", http_status=402)
    house.clock.advance(2)
    served(house, 4)
    assert set_aside(house) == []
    assert house.gates.restarts - before == restarts
    house.gates.shut(FailureKind.SERVER_ERROR, asked_s=None)
    house.clock.advance(2)
    served(house, 1)
    assert house.gates.restarts - before == restarts + 1
