"""Puts the chunks of an event stream together to one completion. Some servers stream although it is off. Pure.

Source: the WHATWG HTML standard, "Server-sent events", and the chunks of OpenAI's streaming API.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson

_T = TypeVar("_T")

LONGEST_END = 64  # the end of a stream is searched in so many last bytes

_BEGINNING = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:data|event|id|retry)?:")
_END = re.compile(rb"(?:\A|[\r\n])data: ?\[DONE\]\s*\Z")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_DONE = b"[DONE]"
_GROWING = frozenset({"content", "reasoning_content", "reasoning", "thinking", "refusal", "arguments"})


@dataclass(slots=True)
class Assembled:
    """The completion of a stream. `data`: None if no event could be read. `is_whole`: the stream came to its end."""

    data: dict[str, Any] | None
    is_whole: bool


@dataclass(slots=True)
class _Choice:
    message: dict[str, Any] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)


def is_event_stream(headers: Mapping[str, str]) -> bool:
    """Whether the headers say that the answer is an event stream. Names in lower case."""
    return "event-stream" in headers.get("content-type", "").lower()


def is_end_of_stream(tail: bytes) -> bool:
    """Whether the last bytes of a stream are its `[DONE]`, which ends it."""
    return tail.rstrip()[-1:] == b"]" and _END.search(tail) is not None


def looks_like_stream(body: bytes) -> bool:
    """Whether a body that is not one JSON value begins like an event stream, or ends with `[DONE]`."""
    return _BEGINNING.match(body) is not None or body[-LONGEST_END:].rstrip().endswith(_DONE)


def assemble(body: bytes) -> Assembled:
    """The events of a body as one completion, in the form of an answer without streaming.

    Chunks are joined by choice and by tool call. A whole completion among the events is taken unchanged. An `error`
    event becomes the field `error`. The last usage counts. Never raises.
    """
    data: dict[str, Any] = {}
    choices: dict[int, _Choice] = {}
    is_done = has_events = False
    for kind, event in _events(body):
        if event is None:
            is_done = True
            break
        has_events = True
        if _is_error(kind, event):
            event = {"error": event.get("error") or event}
        _merge_event(data, choices, event)
    if not has_events:
        return Assembled(None, is_done)
    ordered = [choices[index] for index in sorted(choices)]
    if ordered:
        data["object"] = "chat.completion"
        data["choices"] = [_finished(index, choices[index]) for index in sorted(choices)]
    is_finished = bool(ordered) and all(choice.rest.get("finish_reason") for choice in ordered)
    return Assembled(data, is_done or is_finished)


def encode(data: dict[str, Any]) -> bytes:
    """The completion as JSON. Lone surrogates are kept as escapes."""
    try:
        return orjson.dumps(data)
    except (orjson.JSONEncodeError, RecursionError):
        return json.dumps(data).encode()


def _is_error(kind: str, event: dict[str, Any]) -> bool:
    if "choices" in event:
        return False
    is_flat = "code" in event and bool(event.keys() & {"message", "msg"})
    return kind == "error" or is_flat or "error" in (event.get("object"), event.get("type"))


def _events(body: bytes) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Each event's name and object; None for `[DONE]`. Data that is no object is left out."""
    whole = _load(body.rstrip().removesuffix(_DONE).rstrip().removesuffix(b"data:"))
    if isinstance(whole, dict):  # an answer without streaming, followed by [DONE]
        yield from (("", whole), ("", None))
        return
    kind = ""
    gathered: list[bytes] = []
    for line in [*_LINE_END.split(body.removeprefix(b"\xef\xbb\xbf")), b""]:
        if not line.strip():
            yield from _event(kind, gathered)
            kind, gathered = "", []
            continue
        name, colon, value = line.partition(b":")
        name = name.strip()
        if line.lstrip()[:1] in (b"{", b"["):  # a line of JSON without `data:` before it
            gathered.append(line)
        elif name == b"data" and colon:
            gathered.append(value.removeprefix(b" "))
        elif name == b"event":
            kind = value.strip().decode("utf-8", "replace")


def _event(kind: str, lines: list[bytes]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    if not lines:
        return
    whole = b"\n".join(lines).strip()
    value = None if len(lines) > 1 and whole.endswith(_DONE) else _load(whole)
    if value is None and len(lines) > 1:  # some servers send no empty lines between events
        for line in lines:
            yield from _event(kind, [line])
    elif isinstance(value, dict):
        yield kind, value
    elif whole.endswith(_DONE):
        before = _load(whole.removesuffix(_DONE).strip())
        if isinstance(before, dict):  # `{…}[DONE]`
            yield kind, before
        yield kind, None
    elif kind == "error":
        yield kind, {"error": {"message": whole.decode("utf-8", "replace")}}


def _load(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(text.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        return None


def _merge_event(data: dict[str, Any], choices: dict[int, _Choice], event: dict[str, Any]) -> None:
    for name, value in event.items():
        if name == "choices" or value is None:
            continue
        if name in ("usage", "error"):
            if value:
                data[name] = value
        else:
            data.setdefault(name, value)
    found = event.get("choices")
    if not isinstance(found, list):
        return
    for position, choice in enumerate(found):
        if not isinstance(choice, dict):
            continue
        index = choice.get("index")
        if not isinstance(index, int) or isinstance(index, bool):
            index = position
        _merge_choice(choices.setdefault(index, _Choice()), choice)


def _merge_choice(known: _Choice, choice: dict[str, Any]) -> None:
    for name, value in choice.items():
        if value is None or name in ("index", "delta", "message"):
            continue
        if name == "logprobs" and isinstance(value, dict):
            _merge_lists(_of_type(known.rest, name, dict), value)
        else:
            known.rest[name] = value
    message = choice.get("message")
    if isinstance(message, dict):
        known.message.update(message)
    delta = choice.get("delta")
    if isinstance(delta, dict):
        _merge_delta(known.message, delta)


def _merge_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if value is None:
            continue
        if name == "tool_calls" and isinstance(value, list):
            _merge_tool_calls(_of_type(message, name, list), value)
        elif name == "function_call" and isinstance(value, dict):
            _merge_function(_of_type(message, name, dict), value)
        elif name in _GROWING:
            message[name] = _grown(message.get(name), value)
        elif isinstance(value, list) and isinstance(message.get(name), list):
            message[name].extend(value)
        else:
            message[name] = value


def _of_type(holder: dict[str, Any], name: str, type_: type[_T]) -> _T:
    """The field; if it is missing or of another type, it is set to an empty value first."""
    known = holder.get(name)
    if not isinstance(known, type_):
        known = holder[name] = type_()
    return known


class _Pieces(list[str]):
    """The pieces of a text. They are joined once, at the end: a stream may have a hundred thousand of them."""


def _grown(known: Any, value: Any) -> Any:
    """Joins text to text and parts to parts; if both come, the text becomes a part."""
    if isinstance(value, str):
        if known is None:
            return _Pieces([value])
        if isinstance(known, _Pieces):
            known.append(value)
            return known
    if not value:
        return known
    if not known:
        return value
    parts = _parts(known)
    parts.extend(_parts(value))
    return parts


def _parts(value: Any) -> list[Any]:
    text = _joined(value)
    if isinstance(text, list):
        return text
    return [{"type": "text", "text": text}] if isinstance(text, str) else [text]


def _joined(value: Any) -> Any:
    return "".join(value) if isinstance(value, _Pieces) else value


def _merge_tool_calls(known: list[Any], calls: list[Any]) -> None:
    for call in calls:
        if not isinstance(call, dict):
            continue
        target = _find_call(known, call)
        for name, value in call.items():
            if name == "function" and isinstance(value, dict):
                _merge_function(_of_type(target, "function", dict), value)
            elif value not in (None, ""):
                target.setdefault(name, value)


def _find_call(known: list[Any], call: dict[str, Any]) -> dict[str, Any]:
    """The tool call of a chunk. Some servers number all tool calls 0; then another id means another call."""
    index, id_ = call.get("index"), call.get("id")
    for one in reversed(known):
        if not isinstance(one, dict):
            continue
        is_same_place = index is None or one.get("index") == index
        if is_same_place and (not id_ or one.get("id") in (None, id_)):
            return one
    known.append({})
    made: dict[str, Any] = known[-1]
    return made


def _merge_function(known: dict[str, Any], function: dict[str, Any]) -> None:
    for name, value in function.items():
        if name == "arguments" and value is not None:
            known[name] = _grown(known.get(name), value)
        elif value not in (None, ""):
            known.setdefault(name, value)


def _merge_lists(known: dict[str, Any], value: dict[str, Any]) -> None:
    for name, one in value.items():
        if isinstance(one, list) and isinstance(known.get(name), list):
            known[name].extend(one)
        elif one is not None:
            known[name] = one


def _finished(index: int, choice: _Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None}
    message |= {name: _joined(value) for name, value in choice.message.items()}
    if isinstance(message.get("function_call"), dict):
        message["function_call"] = _finished_function(message["function_call"])
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [_finished_call(call) if isinstance(call, dict) else call for call in calls]
    return {"index": index, "message": message, "finish_reason": None, **choice.rest}


def _finished_call(call: dict[str, Any]) -> dict[str, Any]:
    finished = {name: value for name, value in call.items() if name != "index"}
    if isinstance(finished.get("function"), dict):
        finished["function"] = _finished_function(finished["function"])
    return finished


def _finished_function(function: dict[str, Any]) -> dict[str, Any]:
    return {name: _joined(value) for name, value in function.items()}
