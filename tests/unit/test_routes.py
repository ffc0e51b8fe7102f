"""The routes of a worker: which endpoints serve a model, and for how long one that lacks it is passed by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tests.support.clock import FakeClock
from worker.attempt.routes import Routes
from worker.policy.cost import Price, Rates
from worker.policy.routing import ANY

A, B = 0b01, 0b10


def route(*, price: Price | None = None, endpoint: str = "e") -> Any:
    """What is asked of a route here."""
    judge = SimpleNamespace(others=None)
    return SimpleNamespace(endpoint=endpoint, judge=judge, find_price=lambda *models, at_ms=None: price)


def test_the_endpoints_of_a_model_and_of_one_that_is_not_known() -> None:
    routes = Routes([route(), route()], models=[("m*",), ()], clock=FakeClock())
    assert (routes.find("m1"), routes.find("x"), routes.find(None)) == (A | B, B, ANY)
    assert routes.groups == (B, A | B)


def test_of_one_endpoint_that_names_its_models_no_other_model_is_served() -> None:
    routes = Routes([route()], models=[("m",)], clock=FakeClock())
    assert (routes.find("m"), routes.find("x"), routes.find(None)) == (A, 0, ANY)
    assert not routes.note_lack("m", 0), "there is no other one"


def test_with_one_endpoint_for_all_models_nobody_looks_at_the_model() -> None:
    routes = Routes([route()], models=[()], clock=FakeClock())
    assert routes.find("x") == ANY
    assert routes[0].judge.others is None


def test_an_endpoint_that_lacks_a_model_is_passed_by_for_ten_minutes_while_another_serves_it() -> None:
    clock = FakeClock()
    routes = Routes([route(), route()], models=[(), ()], clock=clock)
    others = routes[0].judge.others
    assert others is not None
    assert others.note_lack("m") and others.note_lack("m"), "also where two calls end at the same time"
    assert (routes.find("m"), routes.find("x")) == (B, A | B)
    assert routes.groups == (B, A | B)
    assert not routes[1].judge.others.note_lack("m"), "nobody would serve it"
    clock.advance(599)
    assert routes.find("m") == B
    clock.advance(2)
    assert routes.find("m") == A | B
    assert routes.groups == (A | B,)


def test_the_price_before_a_call_is_that_of_the_dearest_endpoint_that_may_get_it() -> None:
    dear, cheap = Price(Rates(5, 1)), Price(Rates(1, 4))
    routes = Routes([route(price=dear), route(price=cheap)], models=[("a", "b"), ("b",)], clock=FakeClock())
    assert routes.find_price("a") == dear
    assert routes.find_price("b") == Price(Rates(5, 4, 5)), "of each rate the dearest"
    unknown = Routes([route(price=dear), route()], models=[(), ()], clock=FakeClock())
    assert unknown.find_price("b") is None


def test_the_price_after_a_call_is_that_of_the_endpoint_that_was_called() -> None:
    dear, cheap = Price(Rates(5, 1)), Price(Rates(1, 4))
    routes = Routes(
        [route(price=dear, endpoint="a"), route(price=cheap, endpoint="b")],
        models=[(), ()],
        clock=FakeClock(),
    )
    assert [routes.find_past_price(one, "m-2026", "m", at_ms=1) for one in ("a", "b", "c")] == [
        dear,
        cheap,
        None,
    ]
