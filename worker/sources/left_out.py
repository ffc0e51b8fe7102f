"""What lies among documents and is none of them: which files, and why each was left out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a file or folder is left out, in the words that a person reads behind its name."""

    OTHER_KIND = "not a document by its name"
    EMPTY = "empty"
    HIDDEN = "hidden"
    OUTSIDE = "a link that leads out of the folder"
    AGAIN = "a link to a folder whose documents are there already"
    OWN = "of this run or of antrean itself"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder by its relative path, with slashes; a folder's ends with one.

    `details` says what is wrong with an unreadable one, and what one of antrean's own is.
    """

    name: str
    reason: Reason
    details: str = ""
