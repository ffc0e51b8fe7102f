"""The chat request: how it is validated, encoded and hashed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from schemas.bounds import MAX_MODEL_LENGTH, find_unkeepable

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]

ZERO_TEMPERATURE_RULE = (
    "must be greater than 0: the endpoint documents temperature as > 0 "
    "(set ANTREAN_ALLOW_ZERO_TEMPERATURE=true for an endpoint that takes 0)"
)


class InvalidRequest(ValueError):
    """A request that is not valid. `errors`: one `field: sentence` for each problem."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("; ".join(errors))
        self.errors = errors


class ContentPart(BaseModel):
    """One part of a message's content (`text`, `image_url`, `input_audio`, `file` …)."""

    model_config = ConfigDict(extra="allow")
    type: Annotated[StrictStr, Field(min_length=1)]
    text: StrictStr | None = None

    @model_validator(mode="after")
    def _text_part_has_text(self) -> ContentPart:
        if self.type == "text" and self.text is None:
            raise ValueError("a part of type text needs a text")
        return self


def _content_shape(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    return "parts" if isinstance(value, list) else None


Content = Annotated[
    Annotated[StrictStr, Tag("text")] | Annotated[list[ContentPart], Field(min_length=1), Tag("parts")],
    Discriminator(
        _content_shape,
        custom_error_type="content",
        custom_error_message="must be text or a list of parts",
    ),
]


class Message(BaseModel):
    """One message of the conversation. Further fields are kept unchanged."""

    model_config = ConfigDict(extra="allow")
    role: Role
    content: Content | None = None
    name: StrictStr | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: StrictStr | None = None

    @model_validator(mode="after")
    def _role_has_what_it_needs(self) -> Message:
        if self.role == "assistant":
            extra = self.model_extra or {}
            says = self.content is not None or self.tool_calls
            if not says and not extra.keys() & {"function_call", "refusal", "audio"}:
                raise ValueError("an assistant message needs content or tool_calls")
        elif self.content is None:
            raise ValueError(f"a {self.role} message needs content")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("a tool message needs tool_call_id")
        return self


class ChatRequest(BaseModel):
    """A chat completion request without streaming. Further fields of OpenAI's API are kept.

    Validate with `parse_request`; its `InvalidRequest` names every problem at once.
    """

    model_config = ConfigDict(extra="allow")
    model: Annotated[StrictStr, Field(min_length=1)]
    messages: Annotated[list[Message], Field(min_length=1)]
    temperature: StrictFloat | StrictInt | None = None
    stream: Literal[False] | None = None

    @field_validator("model")
    @classmethod
    def _model_is_a_name(cls, value: str) -> str:
        if "\0" in value:  # PostgreSQL cannot store it
            raise ValueError("must not hold U+0000")
        if not _is_name(value):
            raise ValueError(_MODEL_RULE)
        return value

    @field_validator("temperature", mode="before")
    @classmethod
    def _temperature_is_positive(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None:
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError("must be a number")
        if not math.isfinite(value) or value < 0:
            raise ValueError("must be a finite number greater than 0")
        if value == 0 and not (info.context or {}).get("allow_zero_temperature"):
            raise ValueError(ZERO_TEMPERATURE_RULE)
        return value

    @field_validator("stream", mode="before")
    @classmethod
    def _stream_is_off(cls, value: Any) -> Any:
        if value is not None and value is not False:
            raise ValueError("must be false or absent: a queue cannot stream")
        return value


def parse_request(
    data: Any, *, allow_zero_temperature: bool = False, default_model: str | None = None
) -> ChatRequest:
    """The validated request of a decoded JSON object.

    `default_model` is used if the request has no model. Raises InvalidRequest with every problem, field by field.
    """
    if not isinstance(data, Mapping):
        raise InvalidRequest(["must be a JSON object"])
    data = fill_model(data, default_model)
    unkeepable = find_unkeepable(data, with_text=False)
    if unkeepable is not None and "nested" in unkeepable:  # checked before the pydantic models, which recurse
        raise InvalidRequest([f"request: {unkeepable}"])
    try:
        request = ChatRequest.model_validate(data, context={"allow_zero_temperature": allow_zero_temperature})
    except ValidationError as exc:
        raise InvalidRequest(describe_errors(exc)) from None
    if not _is_seed(data.get("seed")):
        raise InvalidRequest([_SEED_RULE])
    if unkeepable is not None:
        raise InvalidRequest([f"request: {unkeepable}"])
    return request


def check_request(data: dict[str, Any], *, allow_zero_temperature: bool = False) -> None:
    """Checks that a decoded JSON object is a valid request, which may be sent unchanged. Raises InvalidRequest.

    It gives the same errors as `parse_request`, but builds no pydantic model for most requests.
    """
    if not _is_plainly_valid(data):
        parse_request(data, allow_zero_temperature=allow_zero_temperature)


def fill_model(data: Mapping[str, Any], default_model: str | None) -> Mapping[str, Any]:
    """`data`; if it has no model, a copy that begins with the default one."""
    if default_model is None or data.get("model") is not None:
        return data
    return {"model": default_model, **{k: v for k, v in data.items() if k != "model"}}


def encode_decoded(data: Mapping[str, Any]) -> tuple[str, str]:
    """The JSON body of a request that was decoded from JSON, and its `hash_request`. Raises InvalidRequest."""
    try:
        canonical = orjson.dumps(data, option=orjson.OPT_SORT_KEYS)
        return orjson.dumps(data).decode(), hashlib.sha256(canonical).hexdigest()
    except orjson.JSONEncodeError as exc:  # orjson reads four times deeper than it writes
        raise InvalidRequest([f"request: cannot be written as JSON ({exc})"]) from None


def encode_request(request: ChatRequest) -> str:
    """The JSON body to store and to send: only the fields that were given, those of `ChatRequest` first.

    Raises InvalidRequest for values that Python has and JSON cannot hold.
    """
    try:
        return orjson.dumps(request.model_dump(mode="python", exclude_unset=True)).decode()
    except orjson.JSONEncodeError as exc:
        raise InvalidRequest([f"request: cannot be written as JSON ({exc})"]) from None


def hash_request(body: str) -> str:
    """SHA-256 (hex) of a request body. It does not depend on the order of keys."""
    canonical = orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()


_SEED_RULE = "seed: must be a whole number of at most 64 bits"
_MODEL_RULE = f"must be at most {MAX_MODEL_LENGTH} printable characters"
# Roles that need a content, and nothing else.
_TEXT_ROLES = ("user", "system", "assistant", "developer", "function")
_TYPED_KEYS = frozenset({"name", "tool_calls", "tool_call_id"})


def _is_plainly_valid(data: dict[str, Any]) -> bool:
    """True for a decoded JSON object that is certainly a valid request. False: it may be valid or not.

    A fast check for requests whose messages are text, as most are. It takes a tenth of pydantic's time.
    """
    model, messages, temperature = data.get("model"), data.get("messages"), data.get("temperature", 1)
    if type(model) is not str or not model or type(messages) is not list or not messages:
        return False
    # Not isinstance: a bool is an int.
    if type(temperature) not in (float, int) or not 0 < temperature < math.inf:
        return False
    if not _is_name(model) or not _is_seed(data.get("seed")):
        return False
    return data.get("stream", False) is False and all(
        type(message) is dict
        and type(message.get("content")) is str
        and message.get("role") in _TEXT_ROLES
        and (len(message) == 2 or _TYPED_KEYS.isdisjoint(message))
        for message in messages
    )


def _is_name(model: str) -> bool:
    return len(model) <= MAX_MODEL_LENGTH and model.isprintable()


def _is_seed(seed: Any) -> bool:
    """False for a whole number that is too large, also if a JSON reader has turned it into a float."""
    if type(seed) is int:
        return -(2**63) <= seed < 2**64
    return type(seed) is not float or abs(seed) < 2**53


def describe_errors(exc: ValidationError) -> list[str]:
    """One `field: sentence` for each problem of a validation, in input order."""
    return [
        f"{_field_path(error['loc'])}: {put_plainly(error['msg'])}"
        for error in exc.errors(include_url=False, include_input=False, include_context=False)
    ]


def _field_path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for i, part in enumerate(loc):
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in ("text", "parts") and i > 0 and loc[i - 1] == "content":
            continue  # the tag of the content union, not a field
        elif part in ("float", "int") and i > 0:
            continue  # the branch of a number union
        else:
            path += f".{part}" if path else part
    return path or "request"


def put_plainly(message: str) -> str:
    """A validator's message as text to follow the name of a field: `must be a valid list`."""
    if message.startswith("List should have at least 1 item"):
        return "must not be empty"
    plain = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    plain = plain.replace("Field required", "is missing").replace("Input should be", "must be")
    return plain.partition(", unable to parse")[0]
