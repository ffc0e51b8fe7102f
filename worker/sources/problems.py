"""Problems of a user's input, all of them in one InputError."""

from __future__ import annotations

from worker.errors import InputError

MOST_SHOWN = 200


def input_error(subject: str, problems: list[str], *, count: int | None = None) -> InputError:
    """The error for `problems`, which are whole lines in file order. A single problem is the error's sentence.

    `count`: the number of problems, if the list does not hold all of them. At most 200 are shown, then "and N more".
    """
    total = len(problems) if count is None else count
    shown = problems[:MOST_SHOWN]
    if total == 1:
        return InputError(shown[0])
    if total > len(shown):
        shown = [*shown, f"… and {total - len(shown):,} more"]
    return InputError(f"{subject}: {total:,} problems, nothing was sent", shown)


def why(exc: OSError) -> str:
    """The system's text for an error, such as "Permission denied"."""
    return exc.strerror or type(exc).__name__
