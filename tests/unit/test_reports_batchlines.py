"""Output lines: always one valid JSON line, whatever the endpoint sent; and files that are whole or not there."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.failure import FailureKind
from schemas.job import JobState
from worker.errors import InputError
from worker.reports.batchlines import Counts, check_output, output_line, write_lines, write_results
from worker.storage.reading import JobOutcome

SUCCESS = JobOutcome(
    id="0190a6c2-0000-7000-8000-000000000001",
    custom_id="a",
    source_key=None,
    position=1,
    state=JobState.SUCCEEDED,
    raw=b'{"id":"resp-1","choices":[{"message":{"content":"Halo"}}]}',
    error_raw=None,
    answer="Halo",
    http_status=200,
    request_id="req-1",
    failure_kind=None,
    failure_message=None,
)
FAILURE = replace(
    SUCCESS,
    state=JobState.FAILED,
    raw=None,
    answer=None,
    http_status=400,
    failure_kind=FailureKind.REJECTED,
    failure_message="temperature is too low",
)


def line_of(outcome: JobOutcome) -> dict[str, Any]:
    line = output_line(outcome)
    assert line.endswith(b"\n")
    text = line.decode()
    assert len(text.splitlines()) == 1
    orjson.loads(line)  # a strict reader: jq, say
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))  # type: ignore[no-any-return]


def test_a_success_is_an_openai_batch_output_line() -> None:
    assert line_of(SUCCESS) == {
        "id": "batch_req_0190a6c2000070008000000000000001",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req-1", "body": json.loads(SUCCESS.raw or b"")},
        "error": None,
    }


def test_the_endpoint_s_bytes_stand_in_the_line_as_they_came() -> None:
    raw = b'{ "b" : 1.10, "a" : 12345678901234567890123, "a":"\\u00e9 \\u0000" , "z":"\xc3\xa9"}'
    assert raw in output_line(replace(SUCCESS, raw=raw))


def test_without_a_custom_id_the_source_key_names_the_line() -> None:
    assert line_of(replace(SUCCESS, custom_id=None, source_key="docs/a.txt"))["custom_id"] == "docs/a.txt"
    assert line_of(replace(SUCCESS, custom_id=None))["custom_id"] is None


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b'{\n  "a": "b"\r\n}', {"a": "b"}),
        (b'{"a":"\\ud83d","\\udc00":"\\ud83d\\ude00"}', {"a": "\ufffd", "\ufffd": "\U0001f600"}),
        (b'{"a":NaN,"b":-Infinity,"c":1e999}', {"a": None, "b": None, "c": None}),
        (b'{"a":"x\ny"}', {"a": "x\ny"}),
        (b'\xef\xbb\xbf{"a":"b"}', {"a": "b"}),
        ('{"a":"é"}'.encode("utf-16"), {"a": "é"}),
        (b'{"a":"\xff"}', {"a": "\N{REPLACEMENT CHARACTER}"}),
        ('{"a":"\u2028\u2029\x85"}'.encode(), {"a": "\u2028\u2029\x85"}),
        (b'{"a":' + b"9" * 5000 + b"}", {"a": None}),
        (b"[" * 100_000, "[" * 100_000),
        (b"<html>", "<html>"),
    ],
)
def test_bytes_that_are_no_strict_json_line_still_give_one(raw: bytes, body: Any) -> None:
    assert line_of(replace(SUCCESS, raw=raw))["response"]["body"] == body


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.binary()
    | st.text(st.characters()).map(lambda text: json.dumps({text: text}).encode())
    | _JSON.map(lambda value: json.dumps(value, indent=1).encode())
    | st.text().map(str.encode),
    st.none() | st.text(st.characters()),
    st.sampled_from(JobState),
    st.none() | st.sampled_from(FailureKind),
    st.sampled_from([None, 200, 400, 503]),
)
def test_any_outcome_gives_one_valid_json_line(
    raw: bytes, words: str | None, state: JobState, kind: FailureKind | None, status: int | None
) -> None:
    outcome = replace(
        SUCCESS,
        state=state,
        custom_id=words,
        raw=raw,
        error_raw=raw,
        request_id=words,
        failure_kind=kind,
        failure_message=words,
        http_status=status,
    )
    line = line_of(outcome)
    assert set(line) == {"id", "custom_id", "response", "error"}
    assert (line["response"] is None) is not (line["error"] is None)


@given(_JSON)
def test_a_value_comes_through_unchanged_however_it_was_laid_out(value: Any) -> None:
    raw = json.dumps([value], indent=2, allow_nan=True).encode()
    expected = json.loads(raw, parse_constant=lambda _: None)
    assert line_of(replace(SUCCESS, raw=raw))["response"]["body"] == expected


def test_an_openai_error_body_is_kept_as_it_came() -> None:
    raw = b'{"error": {"message": "no", "type": "t", "param": "p", "code": "c"}, "more": 1}'
    line = line_of(replace(FAILURE, error_raw=raw))
    assert line["response"] == {"status_code": 400, "request_id": "req-1", "body": json.loads(raw)}
    assert line["error"] is None


def test_a_flat_error_body_is_put_into_openai_s_shape() -> None:
    outcome = replace(FAILURE, http_status=401, failure_kind=FailureKind.UNAUTHORIZED)
    line = line_of(replace(outcome, error_raw=b'{"message": "Unauthorized", "request_id": "e"}'))
    assert line["response"]["body"] == {
        "error": {
            "message": "Unauthorized",
            "type": "authentication_error",
            "param": None,
            "code": "unauthorized",
        }
    }


@pytest.mark.parametrize(
    "raw", [None, b"<html>", b'{"error": ""}', b'{"message": 3}', b"[]", b'"x"', b"\xff"]
)
def test_an_error_body_without_words_has_the_failure_s(raw: bytes | None) -> None:
    body = line_of(replace(FAILURE, error_raw=raw))["response"]["body"]
    assert body["error"]["message"] == "temperature is too low"
    assert (
        line_of(replace(FAILURE, error_raw=b'{"error": "no"}'))["response"]["body"]["error"]["message"]
        == "no"
    )


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"failure_kind": FailureKind.TIMEOUT}, "request_timeout"),
        ({"failure_kind": FailureKind.UNREACHABLE}, "unreachable"),
        ({"failure_kind": FailureKind.WORKER_LOST, "http_status": 503}, "worker_lost"),
        ({"failure_kind": FailureKind.BAD_RESPONSE, "http_status": 200}, "bad_response"),
        ({"state": JobState.CANCELLED}, "batch_cancelled"),
        ({"state": JobState.EXPIRED, "http_status": 503}, "batch_expired"),
        ({"failure_kind": None}, "failed"),
    ],
)
def test_a_job_without_a_usable_answer_has_an_error_and_no_response(
    changes: dict[str, Any], code: str
) -> None:
    line = line_of(replace(FAILURE, **{"http_status": None, **changes}))
    assert line["response"] is None
    assert line["error"]["code"] == code
    assert line["error"]["message"]


def test_the_lines_are_counted_by_their_endings() -> None:
    stream = io.BytesIO()
    outcomes = [SUCCESS, FAILURE, SUCCESS, replace(FAILURE, state=JobState.EXPIRED)]
    counts = write_lines(iter(outcomes), stream)
    assert counts == Counts(succeeded=2, failed=1, expired=1)
    assert counts.total == len(stream.getvalue().splitlines()) == 4


def test_a_file_is_replaced_whole_and_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    path.chmod(0o640)
    assert write_results([SUCCESS], path).succeeded == 1
    assert orjson.loads(path.read_bytes())["custom_id"] == "a"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old")

    def outcomes() -> Iterator[JobOutcome]:
        yield SUCCESS
        assert path.read_text() == "old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_results(outcomes(), path)
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old")

    def outcomes() -> Iterator[JobOutcome]:
        yield SUCCESS
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left on device"):
        write_results(outcomes(), path)
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_text("old")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    write_results([SUCCESS], tmp_path / "link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert (tmp_path / "real.jsonl").read_bytes() == output_line(SUCCESS)


def test_a_device_is_written_to_and_not_replaced() -> None:
    assert write_results([SUCCESS], Path(os.devnull)).total == 1
    assert Path(os.devnull).is_char_device()


def test_without_a_path_the_lines_go_to_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    write_results([SUCCESS], None)
    assert capfdbinary.readouterr().out == output_line(SUCCESS)


def test_a_place_that_cannot_be_written_is_named_beforehand_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        check_output(tmp_path / "no" / "out.jsonl")
    with pytest.raises(InputError, match="is a folder"):
        check_output(tmp_path)
    check_output(tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())
    if os.getuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(InputError, match="not writable"):
            check_output(tmp_path / "out.jsonl")
