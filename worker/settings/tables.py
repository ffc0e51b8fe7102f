"""Whether the endpoint is the one of the plain settings, or those of the tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from worker.settings.endpoints import KEY_SETTINGS, EndpointSettings, Surroundings, read_endpoints
from worker.settings.files import ENV_FILE, TOML_FILE
from worker.settings.slots import SlotSettings
from worker.settings.sources import ENVIRONMENT, PREFIX, Sources

_TABLES = "endpoint_tables"
_FLAG = "a flag"
_RANKS = (_FLAG, ENVIRONMENT, ENV_FILE, TOML_FILE)  # the first wins
_DEFAULTS = ("auth_style", *SlotSettings.model_fields)  # a table may leave them out


@dataclass(frozen=True, slots=True)
class Tables:
    """The plain settings to use, and the tables, still to be read; `told` None: none are used.

    `unused`: why those that there are are not.
    """

    values: Mapping[str, Any]
    told: object = None
    origin: str = ENVIRONMENT
    problems: list[str] = field(default_factory=list)
    unused: str | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    dotenv: Mapping[str, str] = field(default_factory=dict, repr=False)

    def read(self, settings: BaseModel | None) -> tuple[tuple[EndpointSettings, ...], list[str]]:
        """The endpoints, and a sentence for each thing that is wrong.

        `settings`: what holds where a table is silent.
        """
        is_environment = self.origin in (_FLAG, ENVIRONMENT)
        around = Surroundings(
            origin=f"{PREFIX}{_TABLES.upper()}" if is_environment else self.origin,
            is_environment=is_environment,
            environ=self.environ,
            dotenv=self.dotenv,
            defaults={} if settings is None else {name: getattr(settings, name) for name in _DEFAULTS},
        )
        return read_endpoints(self.told, around)


def choose_tables(sources: Sources, overrides: Mapping[str, Any]) -> Tables:
    """One base URL that a flag or a variable names means that one alone; else the tables hold, where there are any."""
    values = {**sources.values, **overrides}
    told = values.pop(_TABLES, None)
    if told is None:
        return Tables(values)
    origins = {**sources.origins, **dict.fromkeys(overrides, _FLAG)}
    problems = []
    if "base_url" in values:
        ours, other = origins["base_url"], origins[_TABLES]
        if ours == other == TOML_FILE:
            problems.append(
                f"{TOML_FILE}: base_url stands beside [endpoints.…]: make a table of it, or take it away"
            )
        elif _RANKS.index(ours) <= _RANKS.index(other):
            return Tables(values, unused=_explain_unused(told, ours, other))
    problems += [
        f"{TOML_FILE}: {name} stands beside [endpoints.…]: write it into the table of the endpoint that it is for"
        for name in KEY_SETTINGS
        if origins.get(name) == origins[_TABLES] == TOML_FILE
    ]
    # Each table says its own.
    plain = {name: value for name, value in values.items() if name not in ("base_url", *KEY_SETTINGS)}
    return Tables(plain, told, origins[_TABLES], problems, environ=sources.environ, dotenv=sources.dotenv)


def _explain_unused(told: object, ours: str, other: str) -> str:
    count = len(told) if isinstance(told, dict) else 0
    what = {0: "the endpoints", 1: "1 endpoint"}.get(count, f"{count:,} endpoints")
    where = "" if ours in (_FLAG, ENVIRONMENT) else f" in {ours}"
    return (
        f"{what} of {other} {'is' if count == 1 else 'are'} not used, because {PREFIX}BASE_URL is set{where}"
    )
