"""Validates chat requests as the simulated endpoint does."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import orjson

from api_client.simulator.refusal import Refused


def parse_request(body: bytes, models: Collection[str]) -> dict[str, Any]:
    """The decoded request. Raises Refused: 400 for a wrong field, 404 for a model that is not served."""
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise Refused(400, "the body is not valid JSON") from exc
    if not isinstance(request, dict):
        raise Refused(400, "the body must be a JSON object")
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise Refused(400, "model is required")
    if model not in models:  # before the other fields, as gateways do, which route by the model
        raise Refused(404, f"The model `{model}` does not exist")
    _check_messages(request.get("messages"))
    temperature = request.get("temperature")
    if temperature is not None and (not _is_number(temperature) or temperature <= 0):
        raise Refused(400, "temperature must be > 0")
    stream = request.get("stream")
    if stream is not None and stream is not False:
        raise Refused(400, "stream is not simulated: leave it out or send false")
    if request.get("n") not in (None, 1):
        raise Refused(400, "n must be 1")
    for name in ("max_tokens", "max_completion_tokens"):
        limit = request.get(name)
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise Refused(400, f"{name} must be a whole number >= 1")
    return request


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages is required and must be a list that is not empty")
    for position, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refused(400, f"messages[{position}] must be an object with a role")
        content = message.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, dict) for part in content):
                raise Refused(400, f"messages[{position}].content must be text or a list of parts")
        elif content is not None and not isinstance(content, str):
            raise Refused(400, f"messages[{position}].content must be text or a list of parts")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
