"""Runs over overlapping folders that are started, stopped, killed and resumed at random, with real processes.

ANTREAN_STORM_SEED replays one; the seed is printed, and so is each thing that is done.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.support.arena import Arena, Figures
from tests.support.audit import assert_sound
from tests.support.processes import Process, Shop, processes_under
from worker.settings import Settings, load_settings
from worker.storage.engine import open_ledger
from worker.storage.tables import jobs

_SIGNALS = (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
# In order, or killed; by a signal that came before the command listened for it.
_STOPPED = {130, -signal.SIGKILL, -signal.SIGINT, -signal.SIGTERM}


@dataclass
class Command:
    """`antrean run` of one folder, typed again and again."""

    shop: Shop
    name: str
    folder: str
    names: list[str]  # of its lines
    process: Process | None = None
    is_told: bool = False
    codes: Counter[int] = field(default_factory=Counter)

    @property
    def output(self) -> Path:
        return self.shop.folder / f"{self.name}.jsonl"

    def begin(self) -> None:
        self.is_told = False
        command = ("worker.cli", "run", self.folder, "-p", "prompt.md", "-o", self.output.name)
        self.process = self.shop.begin(*command, log=f"{self.name}.log")

    def poll(self) -> bool:
        """Whether it is at work."""
        if self.process is None:
            return False
        code = self.process.poll()
        if code is None:
            return True
        self.codes[code] += 1
        self.process = None
        assert code == 0 or (self.is_told and code in _STOPPED), (
            f"{self.name} ended with {code}:\n{self.log()}"
        )
        if code == 0:
            self.check()
        return False

    def tell(self, number: int) -> None:
        assert self.process is not None
        self.is_told = True
        self.process.send_signal(number)

    def log(self) -> str:
        return (self.shop.folder / f"{self.name}.log").read_text()[-3000:]

    def check(self) -> None:
        """A run that ends with 0 has all its lines, under its own names and in its own order."""
        lines = [json.loads(line) for line in self.output.read_text().splitlines()]
        assert [line["custom_id"] for line in lines] == self.names, self.name
        assert all(line["error"] is None for line in lines)


def write_folders(folder: Path, each: int) -> dict[str, list[str]]:
    """A folder of two, the second with links to half of its documents; the names that a run over each has."""
    (folder / "prompt.md").write_text("Sum up: {{ text }}\n")
    for half in ("a", "b"):
        (folder / "docs" / half).mkdir(parents=True)
        for i in range(each):
            (folder / "docs" / half / f"{i:03}.txt").write_text(f"Document {i} of {half}.")
    for i in range(0, each, 2):
        (folder / "docs" / "b" / f"link{i:03}.txt").symlink_to(f"{i:03}.txt")
    names = {half: sorted(path.name for path in (folder / "docs" / half).iterdir()) for half in ("a", "b")}
    return {
        "docs": [f"{half}/{name}" for half in ("a", "b") for name in names[half]],
        "docs/a": names["a"],
        "docs/b": names["b"],
    }


@pytest.mark.storm
@pytest.mark.simulator("--latency", "0.5")
@pytest.mark.timeout(420)
def test_runs_over_overlapping_folders_each_end_with_their_own_lines(arena: Arena) -> None:
    """Every document is called once, but for the calls that were in flight when a run was killed."""
    seed = int(os.environ.get("ANTREAN_STORM_SEED", 0)) or random.SystemRandom().randrange(1, 2**31)
    print(f"ANTREAN_STORM_SEED={seed}")
    rng = random.Random(seed)
    settings: dict[str, object] = {
        "home": arena.folder / ".antrean",
        "base_url": arena.simulator.url,
        "api_key": "k",
    }
    if arena.postgres is not None:
        assert arena.settings.database_url is not None
        settings["database_url"] = arena.settings.database_url.get_secret_value()
    shop = Shop(arena.folder, {**settings, "concurrency": 4, "grace_s": 5})
    names = write_folders(arena.folder, 160)
    commands = [
        Command(shop, name, folder, names[folder])
        for name, folder in (("whole", "docs"), ("part", "docs/a"), ("links", "docs/b"), ("twin", "docs"))
    ]
    allowed = 0
    pause = threading.Event()
    began_s = time.monotonic()
    try:
        while time.monotonic() < began_s + 120:
            command = rng.choice(commands)
            if not command.poll():
                print(f"{time.monotonic() - began_s:6.1f} s: {command.name} begins")
                command.begin()
            elif not command.is_told:
                number = rng.choice(_SIGNALS)
                if number == signal.SIGKILL:
                    allowed += arena.in_flight()
                print(f"{time.monotonic() - began_s:6.1f} s: {command.name} {signal.Signals(number).name}")
                command.tell(number)
            pause.wait(rng.uniform(0.1, 3))  # the storm's own beat, not a wait for something
        for command in commands:
            while command.poll():  # whoever is still at work
                assert time.monotonic() < began_s + 300, command.log()
                pause.wait(0.1)
        for command in commands:  # each once more, all at the same time
            command.begin()
        end_s = time.monotonic() + 120
        while any(command.poll() for command in commands):
            assert time.monotonic() < end_s, "\n".join(one.log() for one in commands)
            pause.wait(0.1)
    finally:
        shop.close()
    for command in commands:
        print(f"{command.name}: ended with {dict(command.codes)}")
        command.check()
    arena.wait_for(lambda: not processes_under(arena.folder / ".antrean"), "the stack is gone", within_s=20)
    _audit(arena, load_settings(**settings, _env_file=None), len(set(_documents(arena.folder))), allowed)


def _documents(folder: Path) -> list[Path]:
    return [path.resolve() for path in folder.glob("docs/*/*.txt")]


def _audit(arena: Arena, settings: Settings, documents: int, allowed: int) -> None:
    ledger = open_ledger(settings)
    try:
        with ledger.read() as connection:
            rows = connection.execute(select(jobs.c.id, jobs.c.source_key))
            sources: dict[str, str] = {row.id: row.source_key for row in rows}
        assert_sound(ledger)
    finally:
        ledger.dispose()
    calls: Counter[str] = Counter()
    for job, counts in arena.simulator.calls().items():
        calls[sources[job]] += counts["received"]
    extra = sum(calls.values()) - len(calls)
    print(f"{documents} documents, {sum(calls.values())} calls, {extra} again, {allowed} in flight at kills")
    arena.report(
        Figures("runs started, stopped and killed", arena.database, documents, len(calls), 0, 0, extra, None)
    )
    assert len(sources) == len(calls) == documents
    assert extra <= allowed, {name: count for name, count in calls.items() if count > 1}
