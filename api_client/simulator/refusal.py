"""A refusal: the status and the words of an answer that is no completion and no fault."""

from __future__ import annotations


class Refused(Exception):
    """The endpoint refuses a request with `status` and the flat body's `message`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
