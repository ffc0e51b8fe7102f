"""The settings of slots: how many calls a worker makes at once, and how many messages it holds for that."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

FIRST_LIMIT = 16  # calls in flight of a worker that finds the number by itself and does not know it yet
LONE_PART = 16  # one slot of so many is for lone jobs alone


class SlotSettings(BaseModel):
    """How many calls at once, and what follows from it."""

    model_config = ConfigDict(frozen=True)

    concurrency: int | Literal["auto"] = Field(
        default="auto",
        description="calls in flight at once in one worker; auto finds the endpoint's best number",
    )
    max_concurrency: Annotated[int, Field(ge=1, le=4000)] = Field(
        default=256, description="the most calls in flight at once that auto tries, over all workers"
    )
    lone_slots: Annotated[int, Field(ge=0, le=100)] | None = Field(
        default=None, description="slots kept for lone jobs, beside concurrency"
    )

    @field_validator("concurrency", mode="before")
    @classmethod
    def _concurrency_is_auto_or_a_number(cls, value: object) -> object:
        if isinstance(value, str) and value.strip().lower() == "auto":
            return "auto"
        text = str(value).strip() if isinstance(value, (str, int)) and value is not True else ""
        number = int(text) if text.isdecimal() and len(text) < 9 else 0
        if not 1 <= number <= 4000:
            raise ValueError("should be auto, or a whole number from 1 to 4000")
        return number

    @property
    def is_adaptive(self) -> bool:
        """Whether the number of calls in flight is found by itself."""
        return self.concurrency == "auto"

    def split_slots(self, limit: int) -> tuple[int, int]:
        """Of so many calls at once: how many bulk jobs may make, and how many more are for lone jobs alone.

        Bulk jobs keep one at least, but where there is none, and have `concurrency` at most, if that is a number.
        """
        if self.concurrency != "auto" and limit >= self.concurrency + self.lone_slot_count:
            return self.concurrency, self.lone_slot_count
        lone = limit // LONE_PART if self.lone_slots is None else min(self.lone_slots, max(0, limit - 1))
        return limit - lone, lone

    @property
    def bulk_slot_count(self) -> int:
        """The most calls of bulk jobs at once."""
        return self.split_slots(self.max_concurrency)[0] if self.concurrency == "auto" else self.concurrency

    @property
    def lone_slot_count(self) -> int:
        """The most slots beside those of bulk jobs, which these never take."""
        if self.concurrency == "auto":
            return self.split_slots(self.max_concurrency)[1]
        return self.concurrency // LONE_PART if self.lone_slots is None else self.lone_slots

    @property
    def first_slots(self) -> tuple[int, int]:
        """Slots for bulk jobs, and those for lone jobs alone, with which a worker begins."""
        if self.concurrency == "auto":
            return self.split_slots(min(FIRST_LIMIT, self.max_concurrency))
        return self.concurrency, self.lone_slot_count

    @property
    def staged_count(self) -> int:
        """The most bulk messages that are held beyond the slots: jobs claimed ahead, and those being recorded."""
        return count_staged(self.bulk_slot_count)

    @property
    def call_count(self) -> int:
        """The most calls at once."""
        return self.bulk_slot_count + self.lone_slot_count

    @property
    def reserved_count(self) -> int:
        """The most messages that are held at once."""
        return self.call_count + self.staged_count

    @property
    def thread_count(self) -> int:
        """Threads for calls, and for those whose call has ended and is being recorded."""
        return self.call_count + max(1, min(64, self.bulk_slot_count // 4))


def count_staged(slots: int) -> int:
    """The most bulk messages that are held beyond so many slots."""
    return max(1, min(128, slots))
