"""Which batches' jobs come next: deficit round robin by weight, measured in tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.fairness import (
    Account,
    Waiting,
    choose_upstream_priority,
    give_back,
    guess_tokens,
    parse_weight,
    share_room,
)

HEAVY, LIGHT = 1000, 100


def share(
    waiting: Sequence[Waiting], room: int, account: Account | None = None
) -> tuple[dict[str, int], Account]:
    found = share_room(account or Account(), waiting, room=room)
    return dict(found.jobs), found.account


def play(
    waiting: Sequence[Waiting], room: int, times: int, account: Account | None = None
) -> tuple[Counter[str], Account]:
    """The tokens of each batch after room for so many jobs was shared out so many times."""
    account, tokens = account or Account(), Counter[str]()
    of_one = {one.batch_id: one.tokens for one in waiting}
    for _ in range(times):
        jobs, account = share(waiting, room, account)
        for batch_id, count in jobs.items():
            tokens[batch_id] += count * of_one[batch_id]
    return tokens, account


@pytest.mark.parametrize(
    ("waiting", "room", "jobs"),
    [
        ([], 8, {}),
        ([Waiting("a")], 0, {}),
        ([Waiting("a")], 8, {"a": 8}),
        ([Waiting("a", jobs=3)], 8, {"a": 3}),
        ([Waiting("a", jobs=0), Waiting("b")], 8, {"b": 8}),
        ([Waiting("a", HEAVY)], 8, {"a": 8}),
        ([Waiting("a"), Waiting("b")], 8, {"a": 4, "b": 4}),
        ([Waiting("b"), Waiting("a")], 1, {"a": 1}),
        ([Waiting("a"), Waiting("b"), Waiting("c")], 8, {"a": 3, "b": 3, "c": 2}),
        ([Waiting("a", HEAVY), Waiting("b", LIGHT)], 22, {"a": 2, "b": 20}),
        ([Waiting("a", LIGHT, weight=2), Waiting("b", LIGHT)], 9, {"a": 6, "b": 3}),
        ([Waiting("a", LIGHT, weight=0.5), Waiting("b", LIGHT)], 9, {"a": 3, "b": 6}),
        ([Waiting("a", HEAVY, weight=10), Waiting("b", LIGHT)], 8, {"a": 4, "b": 4}),
        ([Waiting("a", HEAVY, weight=2), Waiting("b", LIGHT)], 12, {"a": 2, "b": 10}),
        ([Waiting("a", LIGHT, jobs=1), Waiting("b", HEAVY)], 8, {"a": 1, "b": 7}),
        ([Waiting("a", 0), Waiting("b", 1)], 8, {"a": 4, "b": 4}),
        ([Waiting("a", 10**9, weight=0.01), Waiting("b", 1, weight=100)], 8, {"a": 1, "b": 7}),
    ],
)
def test_room_is_shared_out(waiting: Sequence[Waiting], room: int, jobs: dict[str, int]) -> None:
    assert share(waiting, room)[0] == jobs


@pytest.mark.parametrize("room", [1, 3, 8, 32, 500])
@pytest.mark.parametrize(
    ("waiting", "parts"),
    [
        ([Waiting("a", HEAVY), Waiting("b", LIGHT)], (1, 1)),
        ([Waiting("a", HEAVY, weight=2), Waiting("b", LIGHT)], (2, 1)),
        ([Waiting("a", HEAVY), Waiting("b", LIGHT, weight=2)], (1, 2)),
        ([Waiting("a", 977), Waiting("b", 31), Waiting("c", 350, weight=0.25)], (4, 4, 1)),
    ],
)
def test_the_tokens_are_shared_by_weight_however_small_the_room(
    waiting: Sequence[Waiting], parts: Sequence[int], room: int
) -> None:
    tokens, _ = play(waiting, room, 8_000 // room)
    of_a_part = [tokens[one.batch_id] / part for one, part in zip(waiting, parts, strict=True)]
    assert max(of_a_part) - min(of_a_part) <= 2 * HEAVY
    assert min(of_a_part) > 20 * HEAVY


def test_batches_take_turns_one_by_one() -> None:
    order, account = [], Account()
    for _ in range(6):
        jobs, account = share([Waiting("a"), Waiting("b"), Waiting("c")], 1, account)
        order += list(jobs)
    assert order == list("abcabc")


def test_a_turn_that_the_end_of_the_room_cuts_short_goes_on() -> None:
    waiting, account = [Waiting(f"b{i:03}", LIGHT) for i in range(70)], Account()
    order: list[str] = []
    for _ in range(4):
        jobs, account = share(waiting, 65, account)
        order += [batch_id for batch_id, count in jobs.items() for _ in range(count)]
    assert order == [f"b{i % 70:03}" for i in range(130) for _ in range(2)], "two each, as they are many"


def test_of_very_many_batches_few_send_at_a_time_and_each_has_its_turn() -> None:
    waiting, account, sent = [Waiting(f"b{i:03}") for i in range(200)], Account(), Counter[str]()
    for _ in range(4):
        jobs, account = share(waiting, 400, account)
        assert len(jobs) <= 64
        sent.update(jobs)
    assert len(sent) == 200
    assert max(sent.values()) <= 14


def test_a_new_batch_begins_at_once_and_takes_no_more_than_its_share() -> None:
    old = [Waiting("a", LIGHT), Waiting("b", LIGHT)]
    _, account = play(old, 7, 100)
    new = Waiting("z", HEAVY)
    jobs, account = share([*old, new], 3, account)
    assert jobs["z"] == 1, "with the next round, however large its job is"
    tokens, account = play([*old, new], 3, 6, account)
    assert "z" not in tokens, "the others make up for it first"
    tokens, _ = play([*old, new], 3, 700, account)
    assert max(tokens.values()) - min(tokens.values()) <= 2 * HEAVY


def test_a_batch_that_has_nothing_to_send_saves_nothing_up() -> None:
    both = [Waiting("a", LIGHT), Waiting("b", LIGHT)]
    _, account = play(both, 5, 3)
    _, account = play(both[:1], 5, 1000, account)
    assert set(account.deficits.values()) <= {0}
    tokens, _ = play(both, 5, 4, account)
    assert abs(tokens["a"] - tokens["b"]) <= LIGHT


def test_what_a_batch_took_too_much_is_remembered_until_others_had_as_much() -> None:
    heavy, light = Waiting("a", HEAVY), Waiting("b", LIGHT)
    jobs, account = share([heavy, light], 2)
    assert jobs == {"a": 1, "b": 1}
    debts = []
    for _ in range(10):
        _, account = share([light], 1, account)
        debts.append(account.deficits.get("a", 0))
    assert debts[0] < 0
    assert debts == sorted(debts)
    assert debts[-1] == 0, "then it is forgotten"
    assert share([heavy, light], 2, account)[0]["a"] == 1


def test_a_batch_that_comes_again_and_again_with_one_large_job_gets_its_share_of_tokens_only() -> None:
    tokens, account = Counter[str](), Account()
    for turn in range(200):
        waiting = [Waiting("b", LIGHT)] + ([Waiting("a", HEAVY, jobs=1)] if turn % 2 else [])
        jobs, account = share(waiting, 4, account)
        tokens.update({one.batch_id: one.tokens * jobs.get(one.batch_id, 0) for one in waiting})
    assert tokens["a"] <= tokens["b"] + HEAVY


def test_a_debt_is_no_larger_than_a_job_is_known_to_be_now() -> None:
    _, account = share([Waiting("a", 10**9), Waiting("b", LIGHT)], 2)
    jobs, _ = share([Waiting("a", LIGHT), Waiting("b", LIGHT)], 8, account)
    assert jobs["a"] >= 3, "the first guess was wrong"


def test_jobs_that_a_batch_did_not_have_are_not_charged_and_leave_it_no_credit() -> None:
    waiting = [Waiting("a", HEAVY), Waiting("b", HEAVY)]
    jobs, account = share(waiting, 8)
    assert jobs == {"a": 4, "b": 4}
    back = give_back(account, waiting, {"a": 3})
    assert all(deficit <= 0 for deficit in back.deficits.values())
    assert share(waiting, 2, back)[0] == {"a": 1, "b": 1}
    assert give_back(account, waiting, {}) == account


WAITING = st.lists(
    st.builds(
        Waiting,
        st.sampled_from("abcdefgh"),
        st.integers(0, 100_000),
        st.floats(0.01, 100),
        st.none() | st.integers(0, 30),
    ),
    max_size=8,
    unique_by=lambda one: one.batch_id,
)


@given(st.lists(st.tuples(WAITING, st.integers(0, 60)), max_size=6))
def test_whatever_waits_the_room_is_used_and_no_job_is_invented(
    rounds: list[tuple[list[Waiting], int]],
) -> None:
    account = Account()
    for waiting, room in rounds:
        jobs, after = share(waiting, room, account)
        assert (jobs, after) == share(list(reversed(waiting)), room, account), "the order does not matter"
        account = after
        most = {one.batch_id: room if one.jobs is None else one.jobs for one in waiting}
        assert sum(jobs.values()) == min(room, sum(most.values()))
        assert all(0 < count <= most[batch_id] for batch_id, count in jobs.items())
        prices = {
            one.batch_id: max(1, one.tokens) * 1000 / one.weight + 1 for one in waiting if one.jobs != 0
        }
        for batch_id, deficit in account.deficits.items():
            assert abs(deficit) <= prices.get(batch_id, float("inf"))


def test_a_guess_is_made_of_the_prompts_and_of_what_other_answers_took() -> None:
    body = '{"messages":"' + "x" * 3986 + '"}'
    assert guess_tokens([]) == 256
    assert guess_tokens([], completion_tokens=0) == 1
    assert guess_tokens([body]) == 1000 + 256
    assert guess_tokens([body, body], completion_tokens=40) == 1040
    assert guess_tokens(['{"max_tokens":3}']) == 4 + 3
    assert guess_tokens(["{"], completion_tokens=5) == 5


@pytest.mark.parametrize(
    ("text", "weight"), [("1", 1), ("2.5", 2.5), ("0.01", 0.01), ("100", 100), (" 3 ", 3)]
)
def test_a_weight_is_read(text: str, weight: float) -> None:
    assert parse_weight(text) == weight


@pytest.mark.parametrize("text", ["0", "-1", "0.009", "101", "inf", "nan", "", "two", "1,5"])
def test_a_bad_weight_is_refused_with_its_bounds(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must be a number from 0\.01 to 100$"):
        parse_weight(text)


def test_all_lone_jobs_come_before_bulk_in_what_is_passed_upstream() -> None:
    lone = [choose_upstream_priority(priority, is_bulk=False) for priority in range(10)]
    bulk = [choose_upstream_priority(priority, is_bulk=True) for priority in range(10)]
    assert [*lone, *bulk] == list(range(20))
