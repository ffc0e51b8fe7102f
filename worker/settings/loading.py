"""The settings of this process, read in one place: from the environment, `.env` and `antrean.toml`.

The environment wins over `.env`, which wins over `antrean.toml`; both files are looked for in the current folder.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from pydantic import ValidationError

from schemas.chat import put_plainly
from worker.errors import SettingsError
from worker.settings.endpoints import KEY_SETTINGS
from worker.settings.files import ENV_FILE
from worker.settings.model import Settings
from worker.settings.provenance import find_problems_of_home, find_problems_of_owners
from worker.settings.sources import ENVIRONMENT, PREFIX, describe_unknown, read_sources, unknown_names
from worker.settings.tables import choose_tables
from worker.startup import say


def load_settings(*, _env_file: str | None = ENV_FILE, **overrides: Any) -> Settings:
    """The settings of this process. Raises SettingsError that names every problem at once.

    `overrides` win over the environment. Without an `_env_file` neither file of the folder is read.
    """
    if _env_file is not None and (problems := find_problems_of_owners()):
        raise SettingsError(problems)  # nothing in them is used, not even for a sentence
    sources = read_sources(Settings.model_fields, os.environ, env_file=_env_file)
    problems = list(sources.problems)
    if (origin := sources.origins.get("api_key_command", ENVIRONMENT)) != ENVIRONMENT:
        # A folder may come from anywhere, and whoever made it must not say what runs here.
        problems.append(
            f"{PREFIX}API_KEY_COMMAND: {origin} may not name a command: set it in the environment"
        )
    tables = choose_tables(sources, overrides)
    problems += tables.problems
    settings = None
    try:
        settings = Settings(**tables.values)
        problems += find_problems_of_home(settings.home)
        if not overrides.keys() & {"base_url", *KEY_SETTINGS}:
            settings._address_file = sources.find_address_file(KEY_SETTINGS)
        settings._unused_tables = tables.unused
    except ValidationError as exc:
        for error in exc.errors(include_url=False, include_input=False, include_context=False):
            name = str(error["loc"][0]) if error["loc"] else ""
            sentence = put_plainly(error["msg"])
            problems.append(
                f"{PREFIX}{name.upper()}: {sentence}{sources.say_where(name)}" if name else sentence
            )
    if tables.told is not None:
        endpoints, more = tables.read(settings)
        problems += more
        if settings is not None and endpoints:
            settings = settings.model_copy(
                update={"endpoint_tables": endpoints, "base_url": endpoints[0].base_url}
            )
    if problems or settings is None:
        raise SettingsError(problems) from None
    return settings


@cache
def warn_of_unknown_names() -> None:
    """Says on standard error, once a process, which variables look like settings of antrean and are none."""
    for name in unknown_names(os.environ, Settings.model_fields):
        say(f"warning: {describe_unknown(name, Settings.model_fields)}")
