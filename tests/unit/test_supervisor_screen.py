"""Printing never waits for the reader."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from worker.stack.screen import Screen


def in_loop(work: Callable[[], None]) -> None:
    async def run() -> None:
        work()

    asyncio.run(run())


def read_all(descriptor: int) -> str:
    with os.fdopen(descriptor, "rb") as file:
        return file.read().decode()


def test_lines_reach_a_file_at_once(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        screen = Screen(file.fileno())
        in_loop(lambda: screen.line("one"))
        assert (tmp_path / "out").read_text() == "one\n"


def test_a_reader_that_stands_still_holds_nobody_up_and_is_told_what_was_left_out() -> None:
    ours, theirs = os.pipe()
    screen = Screen(theirs, limit_bytes=100_000)
    line = "x" * 999

    async def run() -> str:
        for _ in range(1000):  # ten times what pipe and memory hold
            screen.line(line)
        read = asyncio.create_task(asyncio.to_thread(read_all, ours))
        await asyncio.sleep(0.2)  # the screen tries again by itself
        screen.line("last")
        screen.close()
        os.close(theirs)
        return await read

    rows = asyncio.run(run()).splitlines()
    assert rows[-1] == "last"
    assert "lines were left out here" in rows[-2]
    assert set(rows[:-2]) == {line}, "what was shown is whole"
    left_out = int(rows[-2].split()[1].replace(",", ""))
    assert len(rows) - 2 + left_out == 1000


def test_a_reader_that_is_gone_ends_nothing() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    screen = Screen(theirs)

    def work() -> None:
        screen.line("to nobody")
        screen.line("neither")

    in_loop(work)
    screen.close()
    os.close(theirs)
