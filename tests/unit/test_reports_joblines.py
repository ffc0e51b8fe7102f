"""Jobs as CSV and JSON: safe in a spreadsheet, whole for a program, whatever is in their texts."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from typing import Any

import pytest

from schemas.job import JobState
from worker.reports.joblines import write_csv, write_json
from worker.storage.job_list import ListedJob, Texts

ALL = frozenset(Texts)
JOB = ListedJob(
    id="0193f0a1-0000-7000-8000-000000000000",
    batch_id="b",
    position=1,
    custom_id="c",
    state=JobState.SUCCEEDED,
    is_held=False,
    failure_kind=None,
    http_status=200,
    request_id="r",
    model="m",
    endpoint="https://e",
    claims=2,
    finish_reason="stop",
    latency_ms=1250,
    prompt_tokens=3,
    completion_tokens=4,
    cost_nano=1_500_000,
    created_at_ms=0,
    not_before_ms=None,
    ended_at_ms=2_000,
    request='{"messages":[{"role":"user","content":"Say it."}]}',
    answer="It.",
    error=None,
    error_body=None,
)


def rows(*jobs: ListedJob, texts: frozenset[Texts] = ALL) -> list[dict[str, str]]:
    stream = io.BytesIO()
    write_csv(jobs, stream, texts=texts)
    return list(csv.DictReader(io.StringIO(stream.getvalue().decode(), newline="")))


def objects(*jobs: ListedJob, texts: frozenset[Texts] = ALL) -> list[dict[str, Any]]:
    stream = io.BytesIO()
    write_json(jobs, stream, texts=texts)
    found: list[dict[str, Any]] = json.loads(stream.getvalue().decode())["jobs"]
    return found


def test_both_forms_tell_the_same_facts() -> None:
    [row], [told] = rows(JOB), objects(JOB)
    assert set(row) == set(told)
    assert (row["job_id"], row["attempts"], row["latency_s"], row["kind"]) == (JOB.id, "2", "1.25", "")
    assert (told["job_id"], told["attempts"], told["latency_s"], told["kind"]) == (JOB.id, 2, 1.25, None)
    assert row["ended_at"] == told["ended_at"] == "1970-01-01T00:00:02.000+00:00"
    assert (row["prompt"], told["prompt"]) == ("Say it.", [{"role": "user", "content": "Say it."}])


def test_no_jobs_are_a_header_or_an_empty_list() -> None:
    assert rows() == []
    assert objects() == []
    stream = io.BytesIO()
    write_csv([], stream)
    assert stream.getvalue().startswith(b"job_id,batch_id,")
    assert b"prompt," not in stream.getvalue().replace(b"prompt_tokens", b"")


def test_texts_are_there_only_when_they_were_asked_for() -> None:
    assert "answer" not in objects(JOB, texts=frozenset())[0]
    assert set(rows(JOB, texts=frozenset({Texts.ERROR}))[0]) >= {"error", "error_body"}
    assert "prompt" not in rows(JOB, texts=frozenset({Texts.ERROR}))[0]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\n"])
def test_no_text_is_a_formula_to_a_spreadsheet(start: str) -> None:
    words = f"{start}cmd|' /C calc'!A0"
    [row] = rows(replace(JOB, custom_id=words, answer=words, model=words, error=words))
    for name in ("custom_id", "answer", "model", "error"):
        assert row[name] == f"'{words}"
    [told] = objects(replace(JOB, custom_id=words))
    assert told["custom_id"] == words


@pytest.mark.parametrize("words", ['a "quoted", b', "two\nlines\tof text", "emoji 🙂"])
def test_texts_come_back_as_they_were(words: str) -> None:
    request = json.dumps({"messages": [{"role": "user", "content": words}]})
    [row] = rows(replace(JOB, answer=words, request=request))
    assert (row["answer"], row["prompt"]) == (words, words)
    [told] = objects(replace(JOB, answer=words, request=request))
    assert (told["answer"], told["prompt"][0]["content"]) == (words, words)


def test_what_would_steer_a_terminal_is_spelled_out_or_escaped() -> None:
    words = "a\rb\x00c\x1b[2J\u2028"
    [row], [told] = rows(replace(JOB, answer=words)), objects(replace(JOB, answer=words))
    assert row["answer"] == "a\\rb\\x00c\\x1b[2J\\u2028"
    assert told["answer"] == words
    stream = io.BytesIO()
    write_json([replace(JOB, answer=words)], stream, texts=ALL)
    assert "\u2028" not in stream.getvalue().decode()


def test_a_lone_surrogate_spoils_nothing() -> None:
    job = replace(JOB, request='{"messages":[{"role":"user","content":"a\\ud800b"}]}')
    assert rows(job)[0]["prompt"] == "a\\ud800b"
    assert objects(job, JOB)[0]["prompt"][0]["content"] == "a\ufffdb"


def test_a_prompt_of_several_messages_names_their_roles() -> None:
    parts = [{"type": "text", "text": "hö"}]
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": parts}]
    [row] = rows(replace(JOB, request=json.dumps({"messages": messages})))
    assert row["prompt"] == 'system: Be kind.\n\nuser: [{"type": "text", "text": "hö"}]'


@pytest.mark.parametrize("request_", ["not json", "[]", '"text"', '{"model":"m"}', "{"])
def test_a_request_that_was_refused_is_shown_as_it_came(request_: str) -> None:
    assert rows(replace(JOB, request=request_))[0]["prompt"] == request_
    assert objects(replace(JOB, request=request_))[0]["prompt"] == request_
