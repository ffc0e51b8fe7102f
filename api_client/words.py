"""Finds the message of an error body of any shape, and cleans it."""

from __future__ import annotations

import html
import re
from typing import Any

LONGEST_MESSAGE = 500

_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_HTML = re.compile(r"\s*(<!doctype html|<html|<head|<body|<!--)", re.IGNORECASE)
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff]+")
_MESSAGE_KEYS = ("message", "detail", "msg", "error_description", "description", "reason", "title", "errors")


def find_words(data: Any, text: str) -> str:
    """The endpoint's message in a body; "" if there is none. Not cleaned yet: see `clean_words`.

    `data`: the decoded JSON, or None if the body is no JSON. `text`: the body as text. Knows the flat `{"message"}`,
    the nested `{"error": {"message"}}`, `{"error": "…"}`, `{"detail": …}` of text or a list, HTML (of which only the
    title is quoted) and plain text.
    """
    if _HTML.match(text):
        title = _TITLE.search(text[:65_536])
        named = html.unescape(title.group(1)).strip() if title else ""
        return f'an HTML page titled "{named}"' if named else "an HTML page"
    if data is None:
        return text
    return _words_of(data, depth=0)


def clean_words(words: str, *, secret: str | None = None) -> str:
    """`words` on one line of at most 500 characters, without control characters; `secret` becomes `***`."""
    if secret:
        words = words.replace(secret, "***")
    words = " ".join(_UNFIT.sub(" ", words[: LONGEST_MESSAGE * 8]).split())
    return words if len(words) <= LONGEST_MESSAGE else words[: LONGEST_MESSAGE - 1] + "…"


def error_codes(data: Any) -> set[str]:
    """The values of `code` and `type` in an error body, nested or flat."""
    if not isinstance(data, dict):
        return set()
    places = [data, data.get("error")]
    found = [place.get(name) for place in places if isinstance(place, dict) for name in ("code", "type")]
    return {code for code in found if isinstance(code, str)}


def _words_of(data: Any, *, depth: int) -> str:
    if isinstance(data, str):
        return data
    if isinstance(data, (int, float)):
        return str(data) if abs(data) < 1e15 else ""
    if depth > 4:
        return ""
    if isinstance(data, list):
        parts = [_words_of(item, depth=depth + 1) for item in data[:5]]
        return "; ".join(part for part in parts if part)
    return _words_of_object(data, depth) if isinstance(data, dict) else ""


def _words_of_object(data: dict[str, Any], depth: int) -> str:
    for key in ("error", *_MESSAGE_KEYS):
        if data.get(key) in (None, "", False, True):
            continue
        words = _words_of(data[key], depth=depth + 1)
        if not words:
            continue
        loc = data.get("loc")  # the field of a validation error
        if key in ("msg", "message") and isinstance(loc, list):
            return f"{'.'.join(str(step)[:100] for step in loc[:10])}: {words}"
        return words
    named = [data[key] for key in ("type", "code") if isinstance(data.get(key), str)]
    return " ".join(named)
