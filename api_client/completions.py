"""Reads a decoded body as a `ChatCompletion`: strict about the answer, lenient about all other fields. Pure."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from schemas.chat import describe_errors
from schemas.completion import ChatCompletion, Usage
from schemas.failure import Spent

_NAMES = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number"}


class NoCompletion(ValueError):
    """The body holds no completion. The text names the wrong field, and never quotes its content."""


def parse_completion(data: Any) -> ChatCompletion:
    """The completion in a decoded body.

    `choices[0].message` must be an object. Other fields of a wrong type (usage, created, id …) are treated as absent,
    and further choices without a message are left out, as the completion was paid for. Raises NoCompletion.
    """
    if not isinstance(data, dict):
        raise NoCompletion(f"the body is {_name(data)}, not an object")
    try:
        return ChatCompletion.model_validate(data)
    except ValidationError:
        pass
    try:
        return ChatCompletion.model_validate(_without_wrong_types(data))
    except ValidationError as exc:
        raise NoCompletion("; ".join(describe_errors(exc)[:3])) from None


def parse_spent(data: Any) -> Spent | None:
    """The tokens that a body without a usable answer reports, or None if it reports none. Never raises."""
    usage = data.get("usage") if isinstance(data, dict) else None
    if not isinstance(usage, dict):
        return None
    try:
        tokens = Usage.model_validate(_fit_usage(usage))
    except ValidationError:
        return None
    spent = Spent(
        model=_encodable(data["model"]) if isinstance(data.get("model"), str) else None,
        prompt_tokens=tokens.prompt_tokens,
        completion_tokens=tokens.completion_tokens,
        total_tokens=tokens.total_tokens,
        cached_tokens=tokens.cached_tokens,
        reasoning_tokens=tokens.reasoning_tokens,
    )
    return spent if spent.total_tokens else None


def _without_wrong_types(data: dict[str, Any]) -> dict[str, Any]:
    choices = data.get("choices")
    if not isinstance(choices, list):
        absent = choices is None
        raise NoCompletion("there are no choices" if absent else f"choices is {_name(choices)}, not a list")
    if not choices:
        raise NoCompletion("choices is empty")
    if not isinstance(choices[0], dict):
        raise NoCompletion(f"choices[0] is {_name(choices[0])}, not an object")
    if not isinstance(choices[0].get("message"), dict):
        raise NoCompletion(f"choices[0].message is {_name(choices[0].get('message'))}, not an object")
    clean = _fit(data, texts=("id", "object", "model"), numbers=("created",))
    clean["choices"] = [
        _fit(choice, texts=("finish_reason",), counts=("index",))
        | {"message": _fit(choice["message"], texts=("role",))}
        for choice in choices
        if isinstance(choice, dict) and isinstance(choice.get("message"), dict)
    ]
    usage = clean.pop("usage", None)
    if isinstance(usage, dict):
        clean["usage"] = _fit_usage(usage)
    return clean


def _fit_usage(usage: dict[str, Any]) -> dict[str, Any]:
    fit = _fit(usage)
    for details in ("prompt_tokens_details", "completion_tokens_details"):
        value = fit.get(details)
        fit[details] = _fit(value) if isinstance(value, dict) else None
    return fit


def _fit(
    data: dict[str, Any],
    *,
    texts: tuple[str, ...] = (),
    numbers: tuple[str, ...] = (),
    counts: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A copy in which the named fields have the right type or are null, and all names can be encoded."""
    fit = {_encodable(name): value for name, value in data.items()}
    for name in fit.keys() & set(texts):
        fit[name] = _encodable(fit[name]) if isinstance(fit[name], str) else None
    for name in fit.keys() & {*numbers, *counts}:
        kinds = (int,) if name in counts else (int, float)
        is_number = isinstance(fit[name], kinds) and not isinstance(fit[name], bool)
        fit[name] = fit[name] if is_number else None
    return fit


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _name(value: Any) -> str:
    return "null" if value is None else _NAMES.get(type(value), "a number")
