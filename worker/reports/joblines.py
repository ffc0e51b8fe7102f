"""Writes jobs as lines of JSON or CSV, one after the other as they are read: memory stays flat."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from typing import Any, BinaryIO

import orjson

from worker.clock import iso_ms
from worker.reports.summary import to_usd
from worker.storage.job_list import ListedJob, Texts
from worker.text.printable import csv_cell, printable_json

_FACTS = (
    "job_id",
    "batch_id",
    "position",
    "custom_id",
    "state",
    "kind",
    "http_status",
    "request_id",
    "model",
    "endpoint",
    "attempts",
    "finish_reason",
    "latency_s",
    "prompt_tokens",
    "completion_tokens",
    "cost_usd",
    "created_at",
    "not_before",
    "ended_at",
    "held",
)


def write_json(
    found: Iterable[ListedJob], stream: BinaryIO, *, texts: frozenset[Texts] = frozenset()
) -> None:
    """Writes one JSON object whose `jobs` has a line for each job. A prompt is the request's messages as sent."""
    stream.write(b'{"jobs":[')
    for i, job in enumerate(found):
        facts = _facts(job)
        if Texts.PROMPT in texts:
            facts["prompt"] = _messages(job.request)
        if Texts.ANSWER in texts:
            facts["answer"] = job.answer
        if Texts.ERROR in texts:
            facts |= {"error": job.error, "error_body": _decoded(job.error_body)}
        stream.write((b",\n" if i else b"\n") + _encode(facts))
    stream.write(b"\n]}\n")
    stream.flush()


def write_csv(found: Iterable[ListedJob], stream: BinaryIO, *, texts: frozenset[Texts] = frozenset()) -> None:
    """Writes a header, then a row for each job, in UTF-8 in every locale."""
    header = list(_FACTS)
    for text in Texts:
        if text in texts:
            header += ["error", "error_body"] if text is Texts.ERROR else [text.value]
    rows = csv.writer(_Utf8Lines(stream), lineterminator="\n")
    rows.writerow(header)
    for job in found:
        told = _facts(job) | dict(spell_texts(job, texts))
        rows.writerow([csv_cell(told.get(name)) for name in header])
    stream.flush()


def spell_texts(job: ListedJob, texts: frozenset[Texts]) -> list[tuple[str, str | None]]:
    """Pairs of name and text, of the texts that were asked for, formatted for people."""
    found: list[tuple[str, str | None]] = []
    if Texts.PROMPT in texts:
        found.append(("prompt", _spell_out(_messages(job.request))))
    if Texts.ANSWER in texts:
        found.append(("answer", job.answer))
    if Texts.ERROR in texts:
        found += [("error", job.error), ("error_body", _decoded(job.error_body))]
    return found


def _facts(job: ListedJob) -> dict[str, Any]:
    values = (
        job.id,
        job.batch_id,
        job.position if job.batch_id is not None else None,
        job.custom_id,
        job.state.value,
        job.failure_kind,
        job.http_status,
        job.request_id,
        job.model,
        job.endpoint,
        job.claims,
        job.finish_reason,
        None if job.latency_ms is None else job.latency_ms / 1000,
        job.prompt_tokens,
        job.completion_tokens,
        to_usd(job.cost_nano),
        _moment(job.created_at_ms),
        _moment(job.not_before_ms),
        _moment(job.ended_at_ms),
        job.is_held,
    )
    return dict(zip(_FACTS, values, strict=True))


def _moment(at_ms: int | None) -> str | None:
    return None if at_ms is None else iso_ms(at_ms)


class _Utf8Lines:
    """A text stream for the CSV writer, on top of a stream of bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, line: str) -> None:
        self._stream.write(line.encode())  # no cell has a lone surrogate in it


def _messages(request: str | None) -> Any:
    """The request's messages; the request's text if it is not JSON with messages."""
    if request is None:
        return None
    try:
        body = json.loads(request)
    except ValueError:
        return request
    return body.get("messages", request) if isinstance(body, dict) else request


def _spell_out(messages: Any) -> str | None:
    """The messages as one text. Of several, each has its role before it."""
    if messages is None or isinstance(messages, str):
        return messages
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        return json.dumps(messages, ensure_ascii=False)
    told = [
        (
            str(one.get("role", "")),
            content if isinstance(content, str) else json.dumps(content, ensure_ascii=False),
        )
        for one in messages
        for content in (one.get("content"),)
    ]
    if len(told) == 1:
        return told[0][1]
    return "\n\n".join(f"{role}: {words}" for role, words in told)


def _decoded(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode("utf-8", "replace")


def _encode(facts: dict[str, Any]) -> bytes:
    try:
        encoded = orjson.dumps(facts).decode()
    except orjson.JSONEncodeError:  # a lone surrogate, which no encoding has, becomes U+FFFD
        text = json.dumps(facts, ensure_ascii=False)
        encoded = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return printable_json(encoded).encode()
