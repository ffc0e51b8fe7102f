"""Jobs that run alone: one at a time has its turn, and the others are published anew when it ends."""

from __future__ import annotations

from worker.attempt.turns import Turns


def test_one_at_a_time_has_its_turn_and_the_others_come_later() -> None:
    turns = Turns()
    assert turns.begin("a")
    assert not turns.begin("c")
    assert not turns.begin("b")
    assert not turns.begin("b")
    assert turns.end() == ["b", "c"]
    assert turns.begin("b")
    assert turns.end() == []


def test_a_second_delivery_of_the_one_on_trial_is_not_published_again() -> None:
    turns = Turns()
    assert turns.begin("a")
    assert not turns.begin("a")
    assert turns.end() == []


def test_one_that_was_met_is_put_off_without_another_look() -> None:
    turns = Turns()
    assert not turns.puts_off("a")
    assert turns.begin("a")
    assert turns.puts_off("a")
    assert not turns.puts_off("b"), "nobody knows that it is one"
    assert not turns.begin("b")
    assert turns.puts_off("b")
    assert turns.end() == ["b"]
    assert not turns.puts_off("b"), "it is nobody's turn"
    assert turns.begin("b")
    assert not turns.puts_off("a"), "its turn is over: the ledger says what it is now"
