"""Requests from JSONL: lines of an OpenAI batch file, bare request bodies, or a mix of both.

{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": […]}}
{"messages": […]}
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from schemas.bounds import MAX_DEPTH, find_unkeepable
from schemas.chat import InvalidRequest, check_request, fill_model
from worker.sources.problems import MOST_SHOWN, input_error, why

URLS = ("/v1/chat/completions", "/chat/completions")
LONGEST_CUSTOM_ID = 512
LONGEST_LINE_BYTES = 64 * 1024 * 1024
_BUFFER_BYTES = 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_LINE_KEYS = ("custom_id", "method", "url", "body")
_BUCKETS = 256


@dataclass(frozen=True, slots=True)
class RequestLine:
    """A valid request and its line number: 1-based, blank lines counted."""

    number: int
    custom_id: str | None
    model: str
    body: Mapping[str, Any]  # the request's decoded JSON, its model filled in
    is_model_filled_in: bool = False  # the line names no model; `body` has the default one


@dataclass(frozen=True, slots=True)
class JsonlSummary:
    """The number of requests of a file, their number for each model, and the first one that names no model itself."""

    count: int
    models: dict[str, int]
    first_unnamed: RequestLine | None = None


class _BadLine(Exception):
    def __init__(self, *problems: str, custom_id: str | None = None) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems
        self.custom_id = custom_id


def read_requests(
    path: Path, *, default_model: str | None, allow_zero_temperature: bool = False, name: str | None = None
) -> Iterator[RequestLine]:
    """The requests of the file, in file order, one in memory at a time. `name`: the name of the file in messages.

    Raises InputError at the first problem. After `check_requests` that happens only if the file has changed since.
    """
    with _opened(path) as file:
        for number, raw in _lines(file):
            try:
                yield _parse_line(number, raw, default_model, allow_zero_temperature)
            except _BadLine as exc:
                raise input_error(
                    name or str(path), [f"line {number}: {problem}" for problem in exc.problems]
                ) from None


def check_requests(
    path: Path, *, default_model: str | None, allow_zero_temperature: bool = False, name: str | None = None
) -> JsonlSummary:
    """A summary of the file, after every line was checked. Memory: 16 bytes a line that has a custom_id.

    `name`: the name of the file in messages.

    Raises an InputError that counts every problem and shows the first 200, as `line 3: temperature: …`.
    """
    subject = name or str(path)
    shown: list[tuple[int, str]] = []
    problem_count = count = 0
    first_unnamed: RequestLine | None = None
    models: dict[str, int] = {}
    ids = _CustomIds()
    with _opened(path) as file:
        for number, raw in _lines(file):
            try:
                line = _parse_line(number, raw, default_model, allow_zero_temperature)
            except _BadLine as exc:
                problem_count += len(exc.problems)
                if len(shown) < MOST_SHOWN:
                    shown += [(number, problem) for problem in exc.problems]
                ids.add(number, exc.custom_id)
                continue
            count += 1
            if line.is_model_filled_in and first_unnamed is None:
                first_unnamed = line
            models[line.model] = models.get(line.model, 0) + 1
            ids.add(number, line.custom_id)
        for found, (number, problem) in enumerate(ids.find_duplicates(file)):
            problem_count += 1
            if found < MOST_SHOWN:
                shown.append((number, problem))
    if problem_count:
        shown.sort(key=lambda item: item[0])
        lines = [f"line {number}: {problem}" for number, problem in shown]
        raise input_error(subject, lines, count=problem_count)
    if not count:
        raise input_error(subject, [f"{subject} holds no requests"])
    return JsonlSummary(count, models, first_unnamed)


class _CustomIds:
    """Finds ids that come twice, with 16 bytes a line: it keeps hashes, and reads again the lines of equal hashes.

    Hashes and line numbers are kept in buckets, so that the search for equal ones never copies all of them.
    """

    def __init__(self) -> None:
        self._buckets = [(array("q"), array("q")) for _ in range(_BUCKETS)]

    def add(self, number: int, custom_id: str | None) -> None:
        if custom_id is None:
            return
        hashed = hash(custom_id)
        hashes, numbers = self._buckets[hashed % _BUCKETS]
        hashes.append(hashed)
        numbers.append(number)

    def find_duplicates(self, file: BinaryIO) -> Iterator[tuple[int, str]]:
        """Line number and problem of each line whose custom_id an earlier line has, in file order."""
        to_compare = self._lines_to_compare()
        if not to_compare:
            return
        file.seek(0)
        first: dict[str, int] = {}
        for number, raw in _lines(file):
            if number in to_compare:
                custom_id = orjson.loads(raw)["custom_id"]
                if custom_id in first:
                    yield number, f"custom_id: {_quote(custom_id)} is on line {first[custom_id]} as well"
                else:
                    first[custom_id] = number

    def _lines_to_compare(self) -> set[int]:
        to_compare: set[int] = set()
        for hashes, numbers in self._buckets:
            if len(set(hashes)) < len(hashes):
                counts = Counter(hashes)
                to_compare.update(n for n, one in zip(numbers, hashes, strict=True) if counts[one] > 1)
        return to_compare


def _parse_line(
    number: int, raw: bytes, default_model: str | None, allow_zero_temperature: bool
) -> RequestLine:
    data = _decode(raw)
    custom_id: str | None = None
    body: Any = data
    if "messages" in data and "body" not in data:
        problems = _check_bare(data)
    else:
        body, named = data.get("body"), data.get("custom_id")
        custom_id = named if isinstance(named, str) else None
        problems = _check_envelope(data)
    if isinstance(body, dict):
        given = body
        body = fill_model(given, default_model)
        try:
            check_request(body, allow_zero_temperature=allow_zero_temperature)
        except InvalidRequest as exc:
            raise _BadLine(*problems, *exc.errors, custom_id=custom_id) from None
        if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:  # else it is surely shallow
            problems += _check_depth(body)
        if not problems:
            return RequestLine(number, custom_id, body["model"], body, body is not given)
    raise _BadLine(*problems, custom_id=custom_id)


def _decode(raw: bytes) -> dict[str, Any]:
    if len(raw) > LONGEST_LINE_BYTES:
        raise _BadLine(f"is longer than {LONGEST_LINE_BYTES // 2**20} MiB")
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        try:
            raw.decode()
        except UnicodeDecodeError as bad:
            raise _BadLine(f"is not UTF-8 (byte {bad.start:,} of the line)") from None
        raise _BadLine(f"is not JSON: {exc.msg} (column {exc.colno:,})") from None
    if not isinstance(data, dict):
        raise _BadLine("must be a JSON object: one request a line")
    return data


def _check_depth(body: Mapping[str, Any]) -> list[str]:
    # orjson reads four times deeper than it writes. Without this check the problem would be found while rows are
    # written, when some of them are committed already.
    try:
        orjson.dumps(body)
    except orjson.JSONEncodeError as exc:
        return [f"request: cannot be written as JSON ({exc})"]
    unkeepable = find_unkeepable(body, with_text=False)
    return [] if unkeepable is None else [f"request: {unkeepable}"]


def _check_bare(data: dict[str, Any]) -> list[str]:
    # Without this check these fields would be sent to the endpoint, and the custom_id would be lost.
    return [
        f'{key}: belongs to an OpenAI batch line, {{"custom_id": …, "body": {{…}}}}, beside its body'
        for key in ("custom_id", "method", "url")
        if key in data
    ]


def _check_envelope(data: dict[str, Any]) -> list[str]:
    if data.keys().isdisjoint(_LINE_KEYS):
        return ["needs messages (a request body), or custom_id and body (an OpenAI batch line)"]
    problems = [
        f"{_quote(key)}: unknown key; a batch line has {', '.join(_LINE_KEYS)}"
        for key in data
        if key not in _LINE_KEYS
    ]
    problems += _check_custom_id(data)
    if data.get("method", "POST") != "POST":
        problems.append("method: must be POST")
    if data.get("url", URLS[0]) not in URLS:
        problems.append(f"url: must be {URLS[0]}")
    if not isinstance(data.get("body"), dict):
        problems.append("body: must be a JSON object, the request")
    return problems


def _check_custom_id(data: dict[str, Any]) -> list[str]:
    custom_id = data.get("custom_id")
    if "custom_id" not in data:
        return ["custom_id: is missing"]
    if not isinstance(custom_id, str) or not custom_id:
        return ["custom_id: must be text, and not empty"]
    if len(custom_id) > LONGEST_CUSTOM_ID:
        return [f"custom_id: must be at most {LONGEST_CUSTOM_ID} characters"]
    return ["custom_id: must not hold U+0000"] if "\0" in custom_id else []


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Line number and bytes of each line that is not blank. A line past the limit is cut; the caller refuses it."""
    number = 0
    while raw := file.readline(LONGEST_LINE_BYTES + 1):
        number += 1
        if number == 1:
            raw = raw.removeprefix(_BOM)
        rest = raw
        while len(rest) > LONGEST_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_LINE_BYTES + 1)
        if raw.strip():
            yield number, raw


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb", buffering=_BUFFER_BYTES) as file:
            yield file
    except FileNotFoundError:
        raise input_error(str(path), [f"No such file: {path}"]) from None
    except IsADirectoryError:
        raise input_error(str(path), [f"{path} is a folder; name a JSONL file"]) from None
    except OSError as exc:
        raise input_error(str(path), [f"{path}: cannot be read ({why(exc)})"]) from None


def _quote(text: str) -> str:
    shown = text if len(text) <= 60 else text[:60] + "…"
    return orjson.dumps(shown).decode()
