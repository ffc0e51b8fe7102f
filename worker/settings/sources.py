"""Where settings come from: the environment, `.env` and `antrean.toml`; and names there that are no settings."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.files.names import FileName, as_file_name, as_text
from worker.settings.files import ENV_FILE, TOML_FILE, read_dotenv, read_toml
from worker.settings.values import holds_path

PREFIX = "ANTREAN_"
ENVIRONMENT = "the environment"
_NOT_SETTINGS = frozenset(
    {"ANTREAN_IN_STACK", "ANTREAN_PYTHON", "ANTREAN_VENV", "ANTREAN_SIMULATOR_KEY"}
    | {"ANTREAN_WORKER_MEMORY", "ANTREAN_POSTGRES_MEMORY"}  # of docker-compose.yml
)
_TABLES = "endpoint_tables"
_NAMES_IN_TOML = {_TABLES: "endpoints"}  # where it is not the setting's own
_NEAR = 0.7
_ALIKE = 0.8  # of 1: ANTREN and ANTEARN are our prefix misspelt, ANTHROPIC is somebody else's


@dataclass(slots=True)
class Sources:
    """Values by the setting's name, the source of each (`ENVIRONMENT`, `.env`, `antrean.toml`), and what is wrong."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    # All variables: of the environment, and of `.env`.
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    dotenv: Mapping[str, str] = field(default_factory=dict, repr=False)

    def say_where(self, name: str) -> str:
        """The end of a sentence about a setting that a file holds; nothing for one of the environment."""
        origin = self.origins.get(name, ENVIRONMENT)
        return "" if origin == ENVIRONMENT else f" (it stands in {origin})"

    def find_address_file(self, key_settings: Iterable[str]) -> str | None:
        """The file that has the base URL, where the key is in the environment; None otherwise."""
        origins = {self.origins.get(name) for name in key_settings}
        address = self.origins.get("base_url", ENVIRONMENT)
        return address if ENVIRONMENT in origins and address != ENVIRONMENT else None


def read_sources(
    names: Collection[str], environ: Mapping[str, str], *, env_file: str | None = ENV_FILE
) -> Sources:
    """What the settings of these names are. The environment wins over `.env`, which wins over `antrean.toml`.

    A variable that is empty counts as not set; but an empty base URL does not mean the default host. Names of
    variables may be in any case. Without an `env_file` neither file of the folder is read.
    """
    found = Sources()
    environ = {as_text(FileName(name)): as_text(FileName(value)) for name, value in environ.items()}
    found.environ = environ
    variables = [(ENVIRONMENT, _settings_in(environ, names))]
    if env_file is not None:
        dotenv, toml = read_dotenv(Path(env_file), environ), read_toml(Path(TOML_FILE))
        keys = {_NAMES_IN_TOML.get(name, name): name for name in names}
        found.dotenv = dotenv.values
        found.problems += toml.problems + dotenv.problems
        found.problems += [
            f"{TOML_FILE}: {_describe_key(name, keys)}" for name in sorted(toml.values.keys() - keys.keys())
        ]
        found.problems += [
            f"{ENV_FILE}: {describe_unknown(name, names)}" for name in unknown_names(dotenv.values, names)
        ]
        variables.append((ENV_FILE, _settings_in(dotenv.values, names)))
        _take(found, TOML_FILE, {keys[key]: value for key, value in toml.values.items() if key in keys})
    for origin, values in reversed(variables):
        _take(found, origin, {name: value for name, value in values.items() if value})
    if "base_url" not in found.values and _TABLES not in found.values:
        found.problems += [
            f"{PREFIX}BASE_URL is set to nothing (in {origin}): set it to the endpoint's address, or unset it"
            for origin, values in variables
            if values.get("base_url") == ""
        ]
        # Else the default host would get what was meant for another.
        found.problems += [
            describe_unknown(name, names)
            for name in unknown_names(environ, names)
            if _nearest(name.upper(), list(map(_variable, names))) == _variable("base_url")
        ]
    return found


def unknown_names(environ: Iterable[str], names: Collection[str]) -> list[str]:
    """Names in `environ` that look like settings of antrean but are none, sorted."""
    known = frozenset(map(_variable, names))
    return sorted(name for name in environ if _is_odd(name.upper(), known))


def describe_unknown(name: str, names: Collection[str]) -> str:
    """A sentence about a variable that is no setting, with the name that was meant, if any is near."""
    meant = _nearest(name.upper(), [_variable(one) for one in names])
    return f"{ascii(name)[1:-1]} is no setting{meant and f': is {meant} meant?'}"


def _settings_in(variables: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    by_name = {name.upper(): value for name, value in variables.items() if name.upper().startswith(PREFIX)}
    by_name |= {name: value for name, value in variables.items() if name.startswith(PREFIX)}
    return {name: by_name[_variable(name)] for name in names if _variable(name) in by_name}


def _take(found: Sources, origin: str, values: Mapping[str, Any]) -> None:
    found.values |= {
        name: as_file_name(value) if isinstance(value, str) and holds_path(name, value) else value
        for name, value in values.items()
    }
    found.origins |= dict.fromkeys(values, origin)


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _describe_key(name: str, names: Collection[str]) -> str:
    meant = _nearest(name.lower().removeprefix(PREFIX.lower()), names)
    return f"{ascii(name)[1:-1]} is no setting{meant and f': is {meant} meant?'}"


def _is_odd(name: str, known: Collection[str]) -> bool:
    if name.startswith(PREFIX):
        return name not in known and name not in _NOT_SETTINGS
    stem = PREFIX.removesuffix("_")
    suffixes = (one.removeprefix(stem) for one in known)
    return any(name.endswith(one) and _are_alike(name.removesuffix(one), stem) for one in suffixes)


def _are_alike(name: str, other: str) -> bool:
    from difflib import SequenceMatcher  # local: hardly ever needed, and each command would pay for it

    return SequenceMatcher(None, name, other).ratio() >= _ALIKE


def _nearest(name: str, known: Collection[str]) -> str:
    from difflib import get_close_matches  # local: as above

    return next(iter(get_close_matches(name, known, n=1, cutoff=_NEAR)), "")
