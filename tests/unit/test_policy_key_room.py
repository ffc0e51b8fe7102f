"""With which key a call is made where each has a limit, and how many calls all keys allow together."""

from __future__ import annotations

import pytest

from worker.policy.key_room import KeyRoom, rank_by_room, sum_limits


def room(share: int, in_flight: int = 0, *, shut: bool = False, held: bool = False) -> KeyRoom:
    return KeyRoom(share, in_flight, is_open=not shut, is_held=held)


@pytest.mark.parametrize(
    ("rooms", "turn", "ranked"),
    [
        ([room(4), room(20)], 0, [0, 1]),
        ([room(4), room(20)], 1, [1, 0]),
        ([room(4), room(20)], 2, [0, 1]),
        ([room(4, 1), room(20, 4)], 0, [1, 0]),
        ([room(4, 1), room(20, 6)], 0, [0, 1]),
        ([room(4, 4), room(20, 19)], 0, [1]),
        ([room(4, 4), room(20, 20)], 0, []),
        ([room(4, 9), room(20, 3)], 0, [1]),
        ([room(0), room(20, 3)], 0, [1]),
        ([room(4), room(20, shut=True)], 0, [0]),
        ([room(4, 4), room(20, shut=True)], 0, []),
        ([room(4, held=True), room(20, 19)], 0, [1]),
        ([room(4, held=True), room(20, 20)], 0, []),
        ([room(4, shut=True), room(20, 5, shut=True)], 0, [0, 1]),
        ([room(0, shut=True), room(1, 1, shut=True)], 0, [0]),
        ([room(4, shut=True, held=True), room(1, 1, shut=True)], 0, []),
        ([room(4), room(4), room(4)], 1, [1, 2, 0]),
        ([], 0, []),
    ],
    ids=[
        "alike, the first's turn",
        "alike, the second's turn",
        "and so on",
        "the one of which less is used",
        "also if that is the smaller one",
        "a full one is passed by",
        "all are full",
        "a lowered one is full until its calls have ended",
        "one without a share",
        "a shut one is passed by",
        "a shut one is no way out for a full one",
        "refused just now",
        "refused just now, and the other is full",
        "all are shut: any may test its gate",
        "all are shut, and one is tested",
        "all are shut, and one was refused just now",
        "three take turns",
        "none",
    ],
)
def test_a_call_is_made_with_the_key_that_has_most_room(
    rooms: list[KeyRoom], turn: int, ranked: list[int]
) -> None:
    assert rank_by_room(rooms, turn=turn) == ranked


@pytest.mark.parametrize(
    ("rooms", "most", "total"),
    [
        ([room(4), room(20)], 256, 24),
        ([room(4), room(20)], 10, 10),
        ([room(4, 9), room(20, 3)], 256, 29),
        ([room(4, shut=True), room(20)], 256, 20),
        ([room(4, 3, shut=True), room(20)], 256, 23),
        ([room(0), room(0)], 256, 0),
        ([room(0, shut=True), room(0, shut=True)], 256, 2),
        ([room(0, shut=True), room(0, shut=True)], 0, 0),
        ([room(4, held=True), room(20)], 256, 24),
    ],
    ids=[
        "the sum",
        "at most what the endpoint allows",
        "calls above a lowered limit take nothing from the other",
        "a shut one adds nothing",
        "a shut one adds its calls in flight",
        "all pause",
        "all are shut: each may be tested",
        "unless nothing is allowed",
        "one that was refused just now has its share soon",
    ],
)
def test_all_keys_allow_the_sum_of_their_shares(rooms: list[KeyRoom], most: int, total: int) -> None:
    assert sum_limits(rooms, most=most) == total


def test_calls_are_spread_in_proportion_to_the_limits() -> None:
    in_flight = [0, 0]
    for turn in range(12):
        [first, *_] = rank_by_room([room(4, in_flight[0]), room(20, in_flight[1])], turn=turn)
        in_flight[first] += 1
    assert in_flight == [2, 10]
