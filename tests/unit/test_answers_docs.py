"""docs/answers.md, row by row, is what the code does."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from api_client.answers import Answer, decide_completion
from api_client.errors import error_for
from schemas.failure import Failure, FailureKind
from worker.policy.gates import MOST_PROBES, PROBE_EVERY_S, SEVERAL, shut_further
from worker.policy.outages import shortest_outage
from worker.policy.patience import UNTRIED_CAP_MS
from worker.policy.retry import Attribution, JobFacts, RetryRules, decide
from worker.settings import Settings

PAGE = (Path(__file__).resolve().parents[2] / "docs/answers.md").read_text(encoding="utf-8")
K = FailureKind
NOW = 1_000_000
COMPLETION = {"choices": [{"message": {"role": "assistant", "content": "hi"}}]}
STREAM = b'data: {"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


def table(heading: str, number: int = 0) -> list[list[str]]:
    """The cells of a table below a heading, without its head."""
    section = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)[number]
    return [re.split(r" \| ", row[2:-2]) for row in found.splitlines()[2:]]


def kind_of(status: int, body: Any = None, headers: dict[str, str] | None = None) -> FailureKind | None:
    raw = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
    outcome = decide_completion(status, headers or {}, raw, wall_now_s=0.0)
    return None if isinstance(outcome, Answer) else outcome.kind


def statuses(cell: str) -> list[int]:
    """The statuses other than 2xx and 1xx that a cell names; of a class, its first and its last."""
    classes = [int(digit) for digit in re.findall(r"\b([3-5])xx\b", cell)]
    named = [int(one) for one in re.findall(r"\b[3-5]\d\d\b", cell)]
    return [*named, *(100 * one + end for one in classes for end in (0, 99))]


@pytest.mark.parametrize("row", table("The kind"), ids=lambda row: row[0][:40])
def test_each_status_has_the_kind_that_the_page_says(row: list[str]) -> None:
    answer, kind = row
    if answer.startswith("2xx"):
        return
    plain, *conditional = answer.split("; ")
    for status in statuses(plain):
        if status not in (400, 499) or "any other" not in plain:
            assert f"`{kind_of(status)}`" in kind, status
    for part in conditional:
        said = signs(part)
        assert said and statuses(part), part
        for status in statuses(part):
            for body, headers in said:
                assert f"`{kind_of(status, body, headers)}`" in kind, (status, body, headers)


def signs(part: str) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """The bodies and headers that a part of a cell names: a header, the codes in backticks, the quoted messages."""
    codes = re.findall(r"`([a-zA-Z_]+)`", part)
    messages = re.findall(r'"([^"]+)"', part)
    headers = [({}, {"retry-after": "3"})] if "`Retry-After`" in part else []
    return [
        *headers,
        *(({"error": {"code": code, "message": "no"}}, {}) for code in codes),
        *(({"error": {"message": f"No: your {words}."}}, {}) for words in messages),
    ]


def test_every_status_from_300_on_is_in_a_row_of_its_kind() -> None:
    by_kind = {row[1]: row[0] for row in table("The kind")}
    for status in range(300, 600):
        kind = kind_of(status)
        cell = " ".join(answer for kinds, answer in by_kind.items() if f"`{kind}`" in kinds)
        is_named = str(status) in cell or f"{status // 100}xx" in cell
        assert is_named, status


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (COMPLETION, None),
        (STREAM, None),
        (STREAM.split(b"\n\n", 1)[0].replace(b'"stop"', b"null") + b"\n\n", K.BAD_RESPONSE),
        (b"<html><title>x</title>", K.BAD_RESPONSE),
        (json.dumps(COMPLETION).encode()[:-5], K.BAD_RESPONSE),
        ({"choices": []}, K.BAD_RESPONSE),
        ({"error": {"message": "no"}}, K.BAD_RESPONSE),
        ({"error": {"code": 503}}, K.SERVER_ERROR),
        ({"error": {"code": "insufficient_quota"}}, K.QUOTA),
        (COMPLETION | {"error": {"code": 429}}, K.RATE_LIMITED),
        ({"choices": [COMPLETION["choices"][0] | {"error": {"code": 401}}]}, K.UNAUTHORIZED),
        ({"choices": [COMPLETION["choices"][0] | {"finish_reason": "error"}]}, K.BAD_RESPONSE),
    ],
    ids=range(12),
)
def test_a_2xx_is_what_is_in_it(body: Any, kind: FailureKind | None) -> None:
    assert kind_of(200, body) is kind


def test_every_kind_is_on_the_page_and_has_an_error_of_its_own_if_a_call_can_raise_it() -> None:
    answered = {name for row in table("The kind") for name in re.findall(r"`(\w+)`", row[1])} & set(K)
    others = {row[0].strip("`") for row in table("The kind", 1)}
    assert answered | others == set(K)
    assert not answered & others
    raised = {kind for kind in K if type(error_for(Failure(kind, ""), latency_s=0)).__name__ != "ApiError"}
    assert raised == answered | {K.INTERRUPTED}


def follow(
    failure: Failure, *, is_proven: bool = True, attribution: Attribution = Attribution.UNKNOWN
) -> tuple[str, str, str]:
    """What becomes of the job, of its attempt and of the gate, in the words of the table."""
    facts = JobFacts(0, 0, None, 1, None, is_proven, attribution)
    decision = decide(failure, facts, now_ms=NOW, rules=RetryRules(), rng=random.Random(1))
    return (
        "fails" if decision.not_before_ms is None else "waits",
        "burnt" if decision.burns else "not burnt",
        "shuts" if decision.shuts_gate else "stays open",
    )


ROWS: dict[str, list[tuple[Failure, bool]]] = {
    "`server_error`; `timeout` and `unreachable` once something was sent; `internal_error`": [
        (Failure(kind, ""), True) for kind in (K.SERVER_ERROR, K.TIMEOUT, K.UNREACHABLE, K.INTERNAL_ERROR)
    ],
    "`bad_response`": [(Failure(K.BAD_RESPONSE, ""), True)],
    "`timeout` or `unreachable` before anything was sent": [
        (Failure(kind, "", was_sent=False), is_proven)
        for kind in (K.TIMEOUT, K.UNREACHABLE)
        for is_proven in (True, False)
    ],
    "`unauthorized`": [(Failure(K.UNAUTHORIZED, "", 401), True)],
    "`quota`": [(Failure(K.QUOTA, "", 402), True)],
    "`rate_limited`": [(Failure(K.RATE_LIMITED, "", 429), True)],
    "`rejected` with 403, 404 or 405, by an endpoint that has answered no call yet": [
        (Failure(K.REJECTED, "", status), False) for status in (403, 404, 405)
    ],
    "`rejected` otherwise": [
        *((Failure(K.REJECTED, "", status), True) for status in (302, 400, 403, 404, 405, 413, 415, 422)),
        *((Failure(K.REJECTED, "", status), False) for status in (302, 400, 413, 415, 422)),
    ],
    "`invalid_request`": [(Failure(K.INVALID_REQUEST, ""), True)],
    "this machine has no descriptor, thread, memory or port left for the call": [
        (Failure(K.UNREACHABLE, "", was_sent=False, is_local=True), True)
    ],
}


def test_what_follows_is_what_the_table_says() -> None:
    rows = table("What follows")
    assert {row[0] for row in rows} == ROWS.keys()
    job_above = ""
    for name, job, attempt, gate in rows:
        job_above = job_above if job.startswith("the same") else job
        for failure, is_proven in ROWS[name]:
            assert follow(failure, is_proven=is_proven) == (job_above.split()[0], attempt, gate), name


def test_a_bad_response_has_fewer_attempts_than_other_failures() -> None:
    fields = Settings.model_fields
    assert fields["bad_response_max_attempts"].default < fields["max_attempts"].default
    assert f"`ANTREAN_MAX_ATTEMPTS` ({fields['max_attempts'].default})" in PAGE


@pytest.mark.parametrize(
    ("kind", "status"), [(K.UNAUTHORIZED, 401), (K.QUOTA, 402), (K.REJECTED, 404), (K.REJECTED, 400)]
)
def test_a_refusal_that_is_the_jobs_own_fails_it(kind: FailureKind, status: int) -> None:
    assert follow(Failure(kind, "", status), attribution=Attribution.JOB) == ("fails", "burnt", "stays open")


@pytest.mark.parametrize("kind", [K.SERVER_ERROR, K.TIMEOUT, K.UNREACHABLE, K.BAD_RESPONSE, K.REJECTED])
def test_what_unrelated_jobs_meet_alike_shuts_the_gate_and_burns_nothing(kind: FailureKind) -> None:
    assert follow(Failure(kind, "", 400), attribution=Attribution.ENDPOINT) == ("waits", "not burnt", "shuts")


def test_the_numbers_on_the_page_are_those_of_the_code() -> None:
    assert SEVERAL == 3
    assert [shortest_outage(rate) for rate in (0.0, 0.05, 0.3, 0.9)] == [3, 5, 13, 20]
    assert (PROBE_EVERY_S, MOST_PROBES) == (5.0, 12)
    assert UNTRIED_CAP_MS == 15 * 60_000
    assert waits(K.SERVER_ERROR, 5) == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert waits(K.QUOTA, 8)[-2:] == [60.0, 60.0]


def waits(kind: FailureKind, probes: int) -> list[float]:
    """Seconds between the probes of a gate, each of which is refused."""
    found, now_ms, gate = [], NOW, None
    for _ in range(probes):
        gate = shut_further(gate, kind, now_ms=now_ms, asked_s=None)
        found.append((gate.until_ms - now_ms) / 1000)
        now_ms = gate.until_ms
    return found
