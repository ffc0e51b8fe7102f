"""Which option of the command line helps where a use case refused. The use cases know of no options."""

from __future__ import annotations

from collections.abc import Mapping

from worker.errors import AntreanError
from worker.operations.errors import (
    KeyMissing,
    ModelMissing,
    PromptMissing,
    Unfinished,
    UnusableQueueName,
    WouldBeSetAside,
)

ADVICE: Mapping[type[AntreanError], str] = {
    KeyMissing: ", or try `antrean run --simulate`, which needs none",
    ModelMissing: ", or with --model",
    PromptMissing: ": --prompt FILE",
    Unfinished: "; --even-unfinished removes what has ended of it",
    UnusableQueueName: " (--queue)",
    WouldBeSetAside: " with --queue",
}
"""The end of each error's sentence."""


def advise(exc: AntreanError) -> str:
    """The error's sentence with the option that helps; as it is where none does."""
    return f"{exc}{ADVICE.get(type(exc), '')}"
