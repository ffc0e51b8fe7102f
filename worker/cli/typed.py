"""Commands that a sentence tells the reader to type: each must work as it stands."""

from __future__ import annotations

import shlex

from worker.settings import Settings


def name_command(settings: Settings, given: Settings) -> str:
    """`antrean` as it must be typed to use the home and ledger of `settings`, in a shell whose settings are `given`.

    They differ in a simulated run, whose batches no other command would find.
    """
    if settings.home == given.home:
        return "antrean"
    said = {"ANTREAN_HOME": str(settings.home)}
    if given.database_url is not None:
        # Else the command would look in that database, whatever the home.
        said["ANTREAN_DATABASE_URL"] = f"sqlite:///{settings.ledger_address}"
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in said.items()), "antrean"])
