"""Problems in what a person handed over: all of them at once, in one InputError."""

from __future__ import annotations

from worker.errors import InputError

MOST_SHOWN = 200


def input_error(subject: str, problems: list[str], *, count: int | None = None) -> InputError:
    """The error for `problems`, whole lines in reading order: a single one is the sentence itself.

    `count` is their number where not all are in the list. At most 200 are shown, then "and N more".
    """
    total = len(problems) if count is None else count
    shown = problems[:MOST_SHOWN]
    if total == 1:
        return InputError(shown[0])
    if total > len(shown):
        shown = [*shown, f"… and {total - len(shown):,} more"]
    return InputError(f"{subject}: {total:,} problems, nothing was sent", shown)


def why(exc: OSError) -> str:
    """The system's own words for an error, as in "Permission denied"."""
    return exc.strerror or type(exc).__name__
