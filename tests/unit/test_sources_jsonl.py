"""Requests from JSONL: what is accepted, and how every problem is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import InputError
from worker.sources import jsonl
from worker.sources.jsonl import JsonlSummary, RequestLine, check_requests, read_requests

BARE = {"model": "m", "messages": [{"role": "user", "content": "Halo"}]}


def batch_line(custom_id: Any = "a", **changes: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": BARE, **changes}


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "in.jsonl"
    path.write_bytes(
        b"".join(line if isinstance(line, bytes) else orjson.dumps(line) + b"\n" for line in lines)
    )
    return path


def check(path: Path, **options: Any) -> JsonlSummary:
    return check_requests(path, default_model=options.pop("default_model", None), **options)


def read(path: Path, **options: Any) -> list[RequestLine]:
    return list(read_requests(path, default_model=options.pop("default_model", None), **options))


def complaints(path: Path, **options: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        check(path, **options)
    return caught.value.problems or [str(caught.value)]


def test_batch_lines_and_bare_bodies_may_stand_in_one_file(tmp_path: Path) -> None:
    path = write(tmp_path, batch_line("a"), BARE, {"custom_id": "b", "body": {**BARE, "model": "n"}})
    assert check(path) == JsonlSummary(3, {"m": 2, "n": 1})
    assert [(line.number, line.custom_id, line.model) for line in read(path)] == [
        (1, "a", "m"),
        (2, None, "m"),
        (3, "b", "n"),
    ]


def test_blank_lines_are_skipped_and_counted_in_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, b"\n", BARE, b"  \r\n", b"\n", orjson.dumps(BARE))
    assert [line.number for line in read(path)] == [2, 5]


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbf" + orjson.dumps(batch_line("a")) + b"\r\n", batch_line("b"))
    assert check(path).count == 2


def test_the_default_model_fills_an_absent_one(tmp_path: Path) -> None:
    path = write(tmp_path, {"messages": BARE["messages"]}, BARE)
    assert check(path, default_model="d").models == {"d": 1, "m": 1}
    assert complaints(path) == ["line 1: model: is missing"]


def test_every_problem_of_the_file_is_named_at_once_with_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        BARE,
        b"{\n",
        {"messages": [{"role": "user", "content": 3}], "model": "m", "temperature": -1},
        b'["a"]\n',
        b'{"messages": "\xff"}\n',
        {"prompt": "hi"},
    )
    first, *others = complaints(path)
    assert first.startswith("line 2: is not JSON: ")
    assert others == [
        "line 3: messages[0].content: must be text or a list of parts",
        "line 3: temperature: must be a finite number greater than 0",
        "line 4: must be a JSON object: one request a line",
        "line 5: is not UTF-8 (byte 14 of the line)",
        "line 6: needs messages (a request body), or custom_id and body (an OpenAI batch line)",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (batch_line(method="GET"), "method: must be POST"),
        (batch_line(url="/v1/embeddings"), "url: must be /v1/chat/completions"),
        (batch_line(custom_id=""), "custom_id: must be text, and not empty"),
        (batch_line(custom_id=7), "custom_id: must be text, and not empty"),
        (batch_line(custom_id="x" * 513), "custom_id: must be at most 512 characters"),
        (batch_line(custom_id="a\0b"), "custom_id: must not hold U+0000"),
        ({"body": BARE}, "custom_id: is missing"),
        (batch_line(body="hi"), "body: must be a JSON object, the request"),
        (batch_line(metadata={}), '"metadata": unknown key; a batch line has custom_id, method, url, body'),
        (batch_line(body={**BARE, "stream": True}), "stream: must be false or absent: a queue cannot stream"),
        ({**BARE, "model": "a\0"}, "model: must not hold U+0000"),
    ],
)
def test_a_line_that_is_not_as_documented_is_refused(tmp_path: Path, line: Any, problem: str) -> None:
    assert complaints(write(tmp_path, line)) == [f"line 1: {problem}"]


def test_the_short_url_and_a_missing_method_are_accepted(tmp_path: Path) -> None:
    path = write(tmp_path, batch_line(url="/chat/completions"), {"custom_id": "b", "body": BARE})
    assert check(path).count == 2


def test_an_id_beside_a_bare_body_is_refused_because_it_would_be_lost(tmp_path: Path) -> None:
    (problem,) = complaints(write(tmp_path, {**BARE, "custom_id": "a"}))
    assert problem.startswith("line 1: custom_id: belongs to an OpenAI batch line")


def test_a_custom_id_that_comes_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path, batch_line("a"), batch_line("b"), BARE, batch_line("a"), batch_line("a", method="PUT")
    )
    assert complaints(path) == [
        'line 4: custom_id: "a" is on line 1 as well',
        "line 5: method: must be POST",
        'line 5: custom_id: "a" is on line 1 as well',
    ]


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=3)
    )
)
def test_ids_are_refused_exactly_where_they_repeat(tmp_path_factory: Any, ids: list[str]) -> None:
    path = write(tmp_path_factory.mktemp("jsonl"), BARE, *(batch_line(id_) for id_ in ids))
    repeats = [n for n, id_ in enumerate(ids) if id_ in ids[:n]]
    if repeats:
        with pytest.raises(InputError) as caught:
            check(path)
        problems = caught.value.problems or [str(caught.value)]
        assert [int(p.split(":")[0].removeprefix("line ")) for p in problems] == [n + 2 for n in repeats]
    else:
        assert check(path).count == len(ids) + 1


def test_zero_temperature_passes_only_where_the_endpoint_takes_it(tmp_path: Path) -> None:
    path = write(tmp_path, {**BARE, "temperature": 0})
    assert "temperature" in complaints(path)[0]
    assert check(path, allow_zero_temperature=True).count == 1


def test_of_many_problems_the_first_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, *[b"{}\n"] * 1500)
    with pytest.raises(InputError) as caught:
        check(path)
    assert "1,500 problems" in str(caught.value)
    assert len(caught.value.problems) == 201
    assert caught.value.problems[-1] == "… and 1,300 more"


def test_a_file_without_requests_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, b"\n\n")
    assert complaints(path) == [f"{path} holds no requests"]


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    assert complaints(tmp_path / "no.jsonl") == [f"No such file: {tmp_path / 'no.jsonl'}"]
    assert complaints(tmp_path) == [f"{tmp_path} is a folder; name a JSONL file"]


def test_an_endless_line_is_refused_without_being_held_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "LONGEST_LINE_BYTES", 1024 * 1024)
    path = write(tmp_path, b"x" * (5 * 1024 * 1024) + b"\n", b"{}\n")
    assert complaints(path)[0] == "line 1: is longer than 1 MiB"
    assert complaints(path)[1].startswith("line 2: needs messages")


def test_a_file_that_changed_after_its_check_ends_with_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, BARE)
    check(path)
    write(tmp_path, BARE, b"{}\n")
    lines = read_requests(path, default_model=None)
    assert next(lines).number == 1
    with pytest.raises(InputError, match="line 2: needs messages"):
        next(lines)


def test_fields_beyond_the_known_are_kept(tmp_path: Path) -> None:
    body = {**BARE, "tools": [{"type": "function", "function": {"name": "f"}}], "seed": 7}
    (line,) = read(write(tmp_path, batch_line(body=body)))
    assert line.body == body


def test_a_request_too_deep_to_be_written_is_named_before_anything_is(tmp_path: Path) -> None:
    deep = b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"x":' + b"[" * 300 + b"]" * 300 + b"}\n"
    (problem,) = complaints(write(tmp_path, deep))
    assert problem.startswith("line 1: request: cannot be written as JSON")


def test_ids_far_apart_are_found_as_well(tmp_path: Path) -> None:
    path = write(tmp_path, *(batch_line(f"id-{n % 3000}") for n in range(3001)))
    assert complaints(path) == ['line 3001: custom_id: "id-0" is on line 1 as well']


def test_the_first_line_that_names_no_model_is_told(tmp_path: Path) -> None:
    unnamed = {"messages": BARE["messages"]}
    path = write(tmp_path, BARE, {"custom_id": "b", "body": {**unnamed, "model": None}}, unnamed)
    first = check(path, default_model="d").first_unnamed
    assert first is not None
    assert (first.number, first.model) == (2, "d")
    assert check(write(tmp_path, BARE), default_model="d").first_unnamed is None


def test_sentences_call_a_copy_what_it_is_a_copy_of(tmp_path: Path) -> None:
    assert complaints(write(tmp_path, b"\n"), name="standard input") == ["standard input holds no requests"]
