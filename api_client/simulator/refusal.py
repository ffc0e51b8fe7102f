"""A refusal: the status and the message of an answer that is no completion and no fault."""

from __future__ import annotations


class Refused(Exception):
    """The endpoint refuses a request, with `status` and a body that has `message`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
