"""Writes results as OpenAI batch output lines. A reader never sees a part of a file."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from schemas.failure import FailureKind
from schemas.job import ORDINARY_FINISH_REASONS, JobState
from worker.errors import InputError
from worker.storage.reading import JobOutcome
from worker.text.printable import printable_json

_ENDED_BY_STATE = {
    JobState.CANCELLED: ("batch_cancelled", "The job was cancelled before it had a result."),
    JobState.EXPIRED: ("batch_expired", "The job's time was over before it had a result."),
}
_NEVER_ANSWERED = frozenset(
    {
        FailureKind.TIMEOUT,
        FailureKind.UNREACHABLE,
        FailureKind.INVALID_REQUEST,
        FailureKind.WORKER_LOST,
        FailureKind.INTERNAL_ERROR,
        FailureKind.BAD_RESPONSE,  # a reader would take an error line with status 200 for a success
    }
)
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


LINE_ID = "batch_req_"  # the beginning of each output line's id
LINE_START = f'{{"id":"{LINE_ID}'.encode()  # the beginning of each output line


@dataclass(frozen=True, slots=True)
class Counts:
    """The number of lines, by the final state of their jobs."""

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    finish_reasons: Mapping[str, int] = field(default_factory=dict)  # of results, those out of the ordinary

    @property
    def total(self) -> int:
        return self.succeeded + self.failed + self.cancelled + self.expired


def count_lines(counts: Counter[JobState], finish_reasons: Mapping[str, int]) -> Counts:
    """The number of lines, from the jobs by state and their results by finish reason."""
    return Counts(
        succeeded=counts[JobState.SUCCEEDED],
        failed=counts[JobState.FAILED],
        cancelled=counts[JobState.CANCELLED],
        expired=counts[JobState.EXPIRED],
        finish_reasons=finish_reasons,
    )


def odd_finish_reasons(outcome: JobOutcome) -> list[str]:
    """The outcome's `finish_reason` if it is out of the ordinary."""
    reason = outcome.finish_reason
    return [] if not reason or reason in ORDINARY_FINISH_REASONS else [reason]


def output_line(outcome: JobOutcome) -> bytes:
    """The job's output line: one line of UTF-8 JSON with a line break, whatever bytes the endpoint sent."""
    response, error = _response(outcome), None
    if response is None:
        error = _error(outcome)
    line = orjson.dumps(
        {
            "id": LINE_ID + outcome.id.replace("-", ""),
            "custom_id": _storable(outcome.source_key if outcome.custom_id is None else outcome.custom_id),
            "response": response,
            "error": error,
        }
    )
    if not line.isascii() or b"\x7f" in line:
        # str.splitlines() breaks lines at U+0085, U+2028 and U+2029; other characters control a terminal.
        line = printable_json(line.decode()).encode()
    return line + b"\n"


def write_lines(outcomes: Iterable[JobOutcome], stream: BinaryIO) -> Counts:
    """Writes one line for each outcome, in order. Returns their number. Raises BrokenPipeError for a closed pipe."""
    states: Counter[JobState] = Counter()
    finish_reasons: Counter[str] = Counter()
    for outcome in outcomes:
        stream.write(output_line(outcome))
        states[outcome.state] += 1
        finish_reasons.update(odd_finish_reasons(outcome))
    stream.flush()
    return count_lines(states, finish_reasons)


def write_results(
    outcomes: Iterable[JobOutcome], path: Path | None, *, check_again: Callable[[], None] | None = None
) -> Counts:
    """Writes the lines to the file, or to standard output if `path` is None, and returns their number.

    The file is replaced as a whole: after a full disk or an interrupt the old one is still there. `check_again` is
    called right before that, and may raise. Raises InputError if the file cannot be written.
    """
    if path is None:
        return write_lines(outcomes, sys.stdout.buffer)
    check_output(path)
    if path.exists() and not path.is_file():  # /dev/null or a named pipe is written to, not replaced
        with _sentences(path), path.open("wb") as stream:
            return write_lines(outcomes, stream)
    target = Path(os.path.realpath(path))  # a link stays a link
    part = target.with_name(f".antrean-{secrets.token_hex(6)}.part")
    try:
        with _sentences(path):
            stream = part.open("xb")
        with stream, _sentences(path):
            counts = write_lines(outcomes, stream)
            if check_again is not None:
                check_again()
            put_in_place(stream, part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return counts


def put_in_place(stream: BinaryIO, part: Path, path: Path) -> None:
    """Renames the finished file `part` to `path`. It gets the mode of the file that it replaces."""
    target = Path(os.path.realpath(path))
    stream.flush()
    os.fsync(stream.fileno())  # synced before the rename: a power cut must not leave an empty file
    if target.exists():
        part.chmod(stat.S_IMODE(target.stat().st_mode))
    part.replace(target)
    _sync_folder(target.parent)


def check_output(path: Path) -> None:
    """Raises InputError if results cannot be written to `path`. Creates nothing."""
    folder = Path(os.path.realpath(path)).parent
    with _sentences(path):
        is_known, is_file = path.exists(), path.is_file()
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file in it, such as {path / 'results.jsonl'}")
    if is_known and not os.access(path, os.W_OK):
        raise InputError(f"{path} is write-protected: choose another file")
    if is_known and not is_file:
        return
    if not folder.is_dir():
        raise InputError(f"The folder {folder} does not exist: make it first, or choose another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"The folder {folder} is not writable: choose another")


def is_standard_output(path: Path) -> bool:
    """Whether the path means standard output. Even if that is a file, it must be written to and not replaced."""
    return str(path) in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def _response(outcome: JobOutcome) -> dict[str, Any] | None:
    if outcome.state is JobState.SUCCEEDED:
        status = 200 if outcome.http_status is None else outcome.http_status
        body = None if outcome.raw is None else _embed(outcome.raw)
    else:
        if outcome.state is not JobState.FAILED or outcome.failure_kind in _NEVER_ANSWERED:
            return None
        # A reader would take an error line with such a status for a success.
        if outcome.http_status is None or 200 <= outcome.http_status < 300:
            return None
        status, body = outcome.http_status, _error_body(outcome, outcome.http_status)
    return {"status_code": status, "request_id": _storable(outcome.request_id), "body": body}


def _error(outcome: JobOutcome) -> dict[str, str | None]:
    if outcome.state in _ENDED_BY_STATE:
        code, message = _ENDED_BY_STATE[outcome.state]
        return {"code": code, "message": message}
    code = "request_timeout" if outcome.failure_kind is FailureKind.TIMEOUT else _code(outcome)
    return {"code": code, "message": _storable(outcome.failure_message) or code}


def _code(outcome: JobOutcome) -> str:
    return outcome.failure_kind.value if outcome.failure_kind is not None else "failed"


def _error_body(outcome: JobOutcome, status: int) -> Any:
    """OpenAI's `{"error": {…}}`: the endpoint's own if it sent one, else one that is made of its message."""
    raw = outcome.error_raw
    said = None if raw is None else _parse(raw)
    if raw is not None and isinstance(said, dict) and isinstance(said.get("error"), dict):
        return _embed(raw)
    flat = said if isinstance(said, dict) else {}
    words = (flat.get("message"), flat.get("error"), outcome.failure_message, f"HTTP {status}")
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": next(_storable(word) for word in words if isinstance(word, str) and word),
            "type": _text(flat.get("type")) or _TYPES.get(status, kind),
            "param": None,
            "code": _text(flat.get("code")) or _code(outcome),
        }
    }


def _embed(raw: bytes) -> Any:
    """The endpoint's bytes unchanged if they are strict JSON on one line; else the same value, encoded again."""
    if b"\n" not in raw and b"\r" not in raw:
        try:
            orjson.loads(raw)
        except orjson.JSONDecodeError:
            pass
        else:
            return orjson.Fragment(raw)
    value = _parse(raw)
    if value is None:  # no JSON: embed its text, so that no paid answer is lost
        value = raw.decode("utf-8", "replace")
    # No encoding has lone surrogates: strict readers refuse the whole line, even if they are escaped.
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        text = json.dumps(raw.decode("utf-8", "replace"), ensure_ascii=False)
    return orjson.Fragment(_LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text).encode())


def _parse(raw: bytes) -> Any:
    """The value as `api_client` reads it, or None. Numbers that JSON cannot hold (NaN, 1e999) become null."""
    try:
        return json.loads(
            raw.removeprefix(b"\xef\xbb\xbf").decode(json.detect_encoding(raw), "replace"),
            strict=False,
            parse_constant=lambda _: None,
            parse_float=_finite,
            parse_int=_whole,
        )
    except (ValueError, RecursionError):
        return None


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


def _whole(digits: str) -> int | float | None:
    return int(digits) if len(digits) < 300 else _finite(digits)


def _text(value: Any) -> str | None:
    return _storable(value) if isinstance(value, str) and value else None


def _storable(text: str | None) -> str | None:
    """`text` without lone surrogates, which UTF-8 cannot hold."""
    return None if text is None else text.encode("utf-8", "replace").decode()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _sentences(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        why = exc.strerror or type(exc).__name__
        raise InputError(f"{path} cannot be written ({why}): nothing of it was changed") from exc
