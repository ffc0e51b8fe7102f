"""Which of several endpoints a command means, and which of them serve a model. Asks nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.errors import NotFound
from worker.settings import EndpointSettings, Settings
from worker.text.printable import printable

_MOST_NAMED = 20


def choose_endpoints(settings: Settings, name: str | None) -> tuple[EndpointSettings, ...]:
    """The endpoint of this name, or all without one. Raises NotFound that names those there are."""
    found = tuple(one for one in settings.endpoints if name in (None, one.name, one.identity))
    if not found:
        names = ", ".join(one.name for one in settings.endpoints)
        raise NotFound(f"no endpoint is named so: there is {names}")
    return found


def drop_served(models: Mapping[str, int], endpoints: Sequence[EndpointSettings]) -> Mapping[str, int]:
    """Those of the models that none of the endpoints serves, with their numbers."""
    return {
        model: count
        for model, count in models.items()
        if not any(endpoint.serves(model) for endpoint in endpoints)
    }


def describe_served(endpoints: Sequence[EndpointSettings]) -> str:
    """`east serves llama-3.1-8b, qwen3*; west serves gpt-4o`."""
    return "; ".join(f"{one.name} serves {_list(one.models) or 'all'}" for one in endpoints)


def _list(models: Sequence[str]) -> str:
    more = len(models) - _MOST_NAMED
    named = [printable(model) for model in models[:_MOST_NAMED]]
    return ", ".join([*named, f"and {more:,} more"] if more > 0 else named)
