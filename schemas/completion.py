"""The endpoint's answer. Only the fields that OpenAI's API guarantees are required; further fields are kept."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _count_or_zero(value: Any) -> int:
    """A token count; 0 for null and for any value that is not a count. The text "12" is a count."""
    if type(value) is int and 0 <= value < 2**53:
        return value
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return 0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**53:
        return 0
    return int(value)


TokenCount = Annotated[int, BeforeValidator(_count_or_zero)]


class Usage(BaseModel):
    """The tokens of one answered call. Absent counts are 0; an absent total is the sum of prompt and completion tokens.

    Cached tokens are a part of the prompt tokens, reasoning tokens of the completion tokens. An endpoint may call these
    `input_tokens` and `output_tokens`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    prompt_tokens: TokenCount = 0
    completion_tokens: TokenCount = 0
    total_tokens: TokenCount = 0
    prompt_tokens_details: dict[str, Any] | None = None
    completion_tokens_details: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _fill_in(self) -> Usage:
        filled = self.__dict__
        for name, other in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
            if not filled[name] and self.model_extra:
                filled[name] = _count_or_zero(self.model_extra.get(other))
        if not filled["total_tokens"]:
            filled["total_tokens"] = filled["prompt_tokens"] + filled["completion_tokens"]
        return self

    @property
    def cached_tokens(self) -> int:
        return _count_or_zero((self.prompt_tokens_details or {}).get("cached_tokens"))

    @property
    def reasoning_tokens(self) -> int:
        return _count_or_zero((self.completion_tokens_details or {}).get("reasoning_tokens"))


class CompletionMessage(BaseModel):
    """The assistant's message of a choice."""

    model_config = ConfigDict(extra="allow")
    role: str | None = None
    content: Any = None
    refusal: Any = None
    tool_calls: Any = None
    reasoning_content: Any = None


class Choice(BaseModel):
    """One choice of a completion."""

    model_config = ConfigDict(extra="allow")
    index: int | None = None
    finish_reason: str | None = None
    message: CompletionMessage


class ChatCompletion(BaseModel):
    """An OpenAI `chat.completion`. At least one choice; every other field is optional."""

    model_config = ConfigDict(extra="allow")
    id: str | None = None
    object: str | None = None
    created: int | float | None = None
    model: str | None = None
    choices: Annotated[list[Choice], Field(min_length=1)]
    usage: Usage | None = None
