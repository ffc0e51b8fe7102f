"""The endpoints that jobs may go to: the tables `[endpoints.NAME]` of `antrean.toml`, each checked, as values."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator

from schemas.address import parse_address
from schemas.chat import put_plainly
from worker.files.names import as_file_name
from worker.settings.prices import ModelPrice, dump_prices, read_prices
from worker.settings.secrets import ApiKey, KeyCommand, split_keys
from worker.settings.slots import SlotSettings
from worker.settings.values import BaseUrl, check_text, expanded_path

AuthStyle = Literal["bearer", "api-key", "auto"]
Quota = Annotated[int, Field(ge=1, le=1_000_000_000)]

# Each says what the key is: one at most is set.
KEY_SETTINGS = ("api_key", "api_keys", "api_key_file", "api_key_command")
_KEY_NAMES = (*KEY_SETTINGS, "api_key_env")
TABLE_NAMES = (
    "base_url",
    *_KEY_NAMES,
    "auth_style",
    "models",
    "weight",
    "prices",
    "concurrency",
    "max_concurrency",
    "lone_slots",
    "requests_per_minute",
    "tokens_per_minute",
    "identity",
)
_EXAMPLE = 'a table such as [endpoints.east] with base_url = "http://10.0.0.2:8000"'
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MOST = 100


class EndpointSettings(SlotSettings):
    """One endpoint that jobs may go to.

    `name`: that of its table; the identity, where there are no tables. `identity`: what its limits and gates are kept
    under. `models`: those that it serves, a `*` at the end for any ending; empty: all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str
    identity: str
    base_url: BaseUrl
    api_key: ApiKey | None = None
    api_keys: SecretStr | None = None
    api_key_file: Path | None = None
    api_key_command: KeyCommand | None = None
    # The variable that `api_key` was read from.
    api_key_env: str | None = None
    auth_style: AuthStyle = "auto"
    models: tuple[str, ...] = ()
    weight: Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)] = 1.0
    prices: tuple[ModelPrice, ...] = ()
    requests_per_minute: Quota | None = None
    tokens_per_minute: Quota | None = None
    # The file with the base URL, where the key comes from the environment; None where both have one source.
    address_file: str | None = None

    @field_validator("identity", "base_url", "auth_style", "models", mode="before")
    @classmethod
    def _text_is_text(cls, value: object) -> object:
        for one in value if isinstance(value, (list, tuple)) else (value,):
            check_text(one)
        if value == "":
            raise ValueError("must not be empty")
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _api_keys_fit_a_header(cls, value: object) -> object:
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            value = ",".join(value)
        return ",".join(split_keys(value, ",")) if isinstance(value, str) else value

    @field_validator("api_key_file", mode="before")
    @classmethod
    def _path_is_absolute(cls, value: object) -> object:
        return expanded_path(Path(as_file_name(value))) if isinstance(value, str) else value

    @field_validator("models", mode="before")
    @classmethod
    def _models_are_names(cls, value: object) -> object:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, (list, tuple)) or not all(isinstance(one, str) and one for one in names):
            raise ValueError('must be a list of names such as ["llama-3.1-8b", "qwen3*"]')
        if value == []:
            raise ValueError("must have a name: left out, the endpoint gets jobs of all models")
        if any("*" in one[:-1] for one in names):
            raise ValueError("may have a * at the end of a name only")
        return tuple(dict.fromkeys(names))

    @field_validator(
        "weight", "requests_per_minute", "tokens_per_minute", "max_concurrency", "lone_slots", mode="before"
    )
    @classmethod
    def _number_is_no_truth_value(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool):
            raise ValueError("must be a number")
        return value

    def serves(self, model: str) -> bool:
        """Whether jobs of this model may go there. Pure."""
        return not self.models or any(
            model.startswith(one[:-1]) if one.endswith("*") else model == one for one in self.models
        )

    def without_key(self) -> EndpointSettings:
        """The same without its key."""
        return self.model_copy(update=dict.fromkeys(_KEY_NAMES))

    def with_most(self, calls: int) -> EndpointSettings:
        """The same with so many calls at once at most, where their number is free."""
        if not self.is_adaptive or self.max_concurrency <= calls:
            return self
        return self.model_copy(update={"max_concurrency": calls})

    def describe_setting(self, name: str) -> str:
        """What a person changes in this table to give another value for the setting of this name."""
        if name == "api_key" and self.api_key_env is not None:
            return self.api_key_env
        return f"{name} of [endpoints.{self.name}]"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What tables are read with. `environ` has the variables that `api_key_env` may name; `dotenv` those of `.env`.

    `origin`: what holds the tables, for sentences. `defaults`: settings that hold where a table says nothing.
    """

    origin: str
    is_environment: bool
    environ: Mapping[str, str]
    dotenv: Mapping[str, str]
    defaults: Mapping[str, Any]


def read_endpoints(told: object, around: Surroundings) -> tuple[tuple[EndpointSettings, ...], list[str]]:
    """The endpoints of these tables, in their order, and a sentence for each thing that is wrong with one.

    `told` is a table of tables, or the same as JSON. No sentence quotes a value, which may be a key.
    """
    if isinstance(told, str):
        try:
            told = json.loads(told, object_pairs_hook=_as_table)
        except ValueError:
            told = None
        if not isinstance(told, dict):
            example = '{"east": {"base_url": "http://10.0.0.2:8000"}}'
            return (), [
                f"{around.origin}: endpoints must be tables as JSON, each name once, such as {example}"
            ]
    if not isinstance(told, dict) or not told:
        return (), [f"{around.origin}: endpoints must be tables: {_EXAMPLE}"]
    problems: list[str] = []
    if len(told) > _MOST:
        problems.append(f"{around.origin}: at most {_MOST} endpoints can be named, not {len(told):,}")
    found = [_read_table(name, table, around, problems) for name, table in list(told.items())[:_MOST]]
    endpoints = tuple(one for one in found if one is not None)
    by_identity: dict[str, str] = {}
    addresses = {one.name: one.base_url for one in endpoints}
    for one in endpoints:
        other = by_identity.setdefault(one.identity, one.name)
        if other != one.name:
            is_address = _name_address(one.base_url) == _name_address(addresses[other])
            problems.append(
                f"{around.origin}: [endpoints.{other}] and [endpoints.{one.name}] have one address: make one table "
                "of them (several keys are api_keys), or give one an identity of its own"
                if is_address
                else f"{around.origin}: [endpoints.{other}] and [endpoints.{one.name}] have one identity: "
                "give one another (without an entry it is the address)"
            )
    return endpoints, problems


def dump_endpoints(endpoints: tuple[EndpointSettings, ...]) -> str:
    """The tables as JSON, with keys in it; `read_endpoints` makes equal values of it."""
    return json.dumps({one.name: _dump_table(one) for one in endpoints})


def _as_table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two tables with one name, JSON would forget the first."""
    told = dict(pairs)
    if len(told) < len(pairs):
        raise ValueError("a name stands there twice")
    return told


def _read_table(
    name: str, told: object, around: Surroundings, problems: list[str]
) -> EndpointSettings | None:
    if not _NAME.fullmatch(name):
        problems.append(
            f"{around.origin}: the name of a table of endpoints has letters, digits, `_`, `.` and `-`, and at most "
            f"60 of them: {ascii(name)[:80]} has others"
        )
        return None
    where = f"{around.origin}: [endpoints.{name}]"
    if not isinstance(told, dict):
        problems.append(f"{where} must be {_EXAMPLE}")
        return None
    before = len(problems)
    table = dict(told)
    for key in [key for key in table if key not in TABLE_NAMES]:
        del table[key]
        problems.append(f"{where}: {ascii(key)[1:-1]} is unknown; a table has {', '.join(TABLE_NAMES)}")
    _read_key(where, table, around, problems)
    if "prices" in table:
        table["prices"] = read_prices(f"{where}: prices", table["prices"], problems)
    values = {**around.defaults, **table, "name": name}
    values.setdefault("identity", _name_address(values.get("base_url")))
    try:
        endpoint = EndpointSettings(**values)
    except ValidationError as exc:
        for error in exc.errors(include_url=False, include_input=False, include_context=False):
            problems.append(f"{where}: {error['loc'][0]} {put_plainly(error['msg'])}")
        return None
    return endpoint if len(problems) == before else None


def _read_key(where: str, table: dict[str, Any], around: Surroundings, problems: list[str]) -> None:
    """Reads `api_key_env`; says what must not be. A folder may come from anywhere, and whoever made it must not say
    what runs here, nor which secret of the environment leaves it."""
    given = [name for name in _KEY_NAMES if name in table]
    if len(given) > 1:
        problems.append(f"{where}: {', '.join(given[:-1])} and {given[-1]} are given: keep one")
    if "api_key_command" in table and not around.is_environment:
        del table["api_key_command"]
        problems.append(
            f"{where}: api_key_command may not stand in a file: name the tables in ANTREAN_ENDPOINT_TABLES, as JSON"
        )
    if "api_key_env" not in table or len(given) > 1:
        return
    variable = table.pop("api_key_env")
    if not isinstance(variable, str) or not _VARIABLE.fullmatch(variable):
        problems.append(f"{where}: api_key_env must be the name of a variable")
    elif not variable.upper().endswith("API_KEY"):
        problems.append(f"{where}: api_key_env must name a variable that ends in API_KEY")
    elif key := around.environ.get(variable):
        table |= {"api_key": key, "api_key_env": variable}
        if not around.is_environment:
            table["address_file"] = around.origin
    elif key := around.dotenv.get(variable):
        table |= {"api_key": key, "api_key_env": variable}
    else:
        problems.append(f"{where}: api_key_env: the variable {variable} is not set")


def _name_address(base_url: object) -> str:
    """The identity of an address; some text where it is none, which is a problem of its own."""
    try:
        return parse_address(str(base_url)).name
    except ValueError:
        return "unknown"


def _dump_table(one: EndpointSettings) -> dict[str, Any]:
    table: dict[str, Any] = {"base_url": one.base_url, "identity": one.identity}
    for name in TABLE_NAMES:
        value = getattr(one, name)
        if name in table or value is None or value == () or (name == "api_key" and one.api_key_env):
            continue
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        elif isinstance(value, Path):
            value = str(value)
        elif name == "prices":
            value = dump_prices(value)
        table[name] = value
    return table
