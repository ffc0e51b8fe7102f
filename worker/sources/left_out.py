"""Files and folders that are left out of a run's documents, and the reason for each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a file or folder is left out. The value is shown to the user after its name."""

    OTHER_KIND = "not a document by its name"
    EMPTY = "empty"
    HIDDEN = "hidden"
    OUTSIDE = "a link that leads out of the folder"
    AGAIN = "a link to a folder whose documents are there already"
    OWN = "of this run or of antrean itself"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that is left out. `name`: its relative path, with slashes; that of a folder ends with one.

    `details`: for an unreadable file the error, for one of antrean's own what it is.
    """

    name: str
    reason: Reason
    details: str = ""
