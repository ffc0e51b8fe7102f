"""What `apply_async` is told and nobody would act on is refused where it is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, group

from schemas.chat import InvalidRequest
from worker.consume.results import ResultsInLedger
from worker.intake.messages import Asked, build_job
from worker.intake.producing import check_options
from worker.tasks import complete_chat

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
ONE = complete_chat.s(REQUEST)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: complete_chat.apply_async([REQUEST], link=ONE), "link"),
        (lambda: complete_chat.apply_async([REQUEST], link_error=ONE), "link_error"),
        (lambda: ONE.clone().set(link=ONE).delay(), "link"),
        (lambda: (ONE | ONE).apply_async(), "chain"),
        (lambda: chain(ONE, ONE)(), "chain"),
        (lambda: complete_chat.apply_async([REQUEST], queue="other"), "queue"),
        (lambda: complete_chat.apply_async([REQUEST], routing_key="other"), "routing_key"),
        (lambda: complete_chat.apply_async([REQUEST], shadow="name"), "shadow"),
        (lambda: complete_chat.apply_async([REQUEST], time_limit=3), "time_limit"),
        (lambda: complete_chat.apply_async([REQUEST], headers={"a": 1}), "headers"),
        (lambda: complete_chat.apply_async([REQUEST], ignore_result=False), "ignore_result"),
        (lambda: complete_chat.apply_async([REQUEST], prioriti=3), "prioriti"),
        (lambda: complete_chat.apply_async([REQUEST], custom_id="x"), "custom_id"),
        (lambda: complete_chat.map([REQUEST]), "map"),
        (lambda: complete_chat.chunks([(REQUEST,)], 1), "map"),
    ],
)
def test_what_nobody_would_act_on_is_refused_by_name(call: Callable[[], Any], name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        call()
    assert [problem.split(":")[0].split(",")[0] for problem in caught.value.errors] == [name]


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_options({"queue": "q", "priority": 3, "link": ONE, "time_limit": 3, "expires": None})
    assert [problem.split(":")[0] for problem in caught.value.errors] == ["queue", "link", "time_limit"]


def test_what_celery_hands_along_in_a_group_is_no_problem() -> None:
    check_options({"group_id": "g", "group_index": 0, "reply_to": "r", "add_to_parent": False, "chain": []})
    check_options({"priority": 3, "expires": 60, "countdown": 5, "eta": None, "ignore_result": True})


def test_a_chord_is_refused() -> None:
    with pytest.raises(ResultsInLedger):
        chord([ONE, ONE], ONE).apply_async()


@pytest.mark.parametrize("ask", ["get", "state", "status", "result", "ready", "successful", "failed", "wait"])
def test_the_handle_of_a_job_says_where_its_result_is(ask: str) -> None:
    handle = complete_chat.AsyncResult("job-1")

    def tell() -> Any:
        found = getattr(handle, ask)
        return found()

    with pytest.raises(ResultsInLedger, match="antrean show job-1"):
        tell()


def test_so_does_the_handle_of_a_group() -> None:
    results = group(ONE, ONE).freeze()
    with pytest.raises(ResultsInLedger, match="antrean show"):
        results.get()


@pytest.mark.parametrize(
    ("batch", "is_name"),
    [
        ("batch_0193b2f27e8d7c5fa1b2c3d4e5f60718", False),
        ("batch_0193B2F27E8D7C5FA1B2C3D4E5F60718", False),
        ("batch_0193", True),
        ("nightly", True),
    ],
)
def test_a_batch_is_not_named_like_an_id_of_another(batch: str, is_name: bool) -> None:
    def build() -> None:
        asked = Asked(request=REQUEST, options={"batch": batch})
        build_job("t", asked, endpoint="e", default_model=None, allow_zero_temperature=False)

    if is_name:
        build()
    else:
        with pytest.raises(InvalidRequest, match="batch: has the form of an id"):
            build()
