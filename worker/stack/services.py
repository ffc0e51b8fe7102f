"""The services of a keeper: what is kept, for which settings, and who uses it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.stack.child import Child
from worker.stack.kept import KeptProcess, Launch

log = logging.getLogger("antrean.keeper")


@dataclass(frozen=True, slots=True)
class Service:
    """A kept process of the stack, and a digest of its settings."""

    process: KeptProcess
    fingerprint: str


@dataclass(slots=True)
class Workplace:
    """A worker of the stack: a digest of its settings, and the commands that use it."""

    fingerprint: str
    users: set[asyncio.StreamWriter] = field(default_factory=set)
    last_user: asyncio.StreamWriter | None = None

    def remove_user(self, writer: asyncio.StreamWriter) -> bool:
        """Whether `writer` was the last of its users."""
        if writer not in self.users:
            return False
        self.users.discard(writer)
        self.last_user = writer
        return not self.users


def fingerprint_of(message: dict[str, Any]) -> str:
    """What tells one worker's settings from another's. It is made of secrets, and is shown to nobody."""
    return hashlib.sha256(json.dumps([message.get("argv"), message.get("env")]).encode()).hexdigest()


def log_starts(name: str, launch: Launch) -> Launch:
    """The same launch, each child of it named in the log."""

    async def launch_and_tell(adopt: Callable[[Child], Child]) -> None:
        def adopt_and_tell(child: Child) -> Child:
            log.info("service.started service=%s pid=%d", name, child.pid)
            return adopt(child)

        await launch(adopt_and_tell)

    return launch_and_tell


def launch_plainly(argv: list[str], env: dict[str, str], cwd: Path, output: Path) -> Launch:
    """A launch of a program that is ready as soon as it runs, as far as anybody here can tell."""

    async def launch(adopt: Callable[[Child], Child]) -> None:
        adopt(Child(argv, env=env, cwd=cwd, log=output))

    return launch
