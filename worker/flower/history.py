"""Keeps Flower's tasks and workers across a restart, as JSON.

Flower itself keeps a pickle. Loading a pickle can run any code: a downloaded folder could hold one, and the key is in
the environment. Here a file that holds anything but names and numbers is set aside.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import structlog
from celery.events.state import Task, Worker
from flower.events import Events, EventsState

from worker.files.private import open_private

log = structlog.get_logger(__name__)

_FORMAT = "antrean: Flower's history, 1"
_RELATIVES = ("children", "parent", "root")  # other tasks, found again by their ids
_TASK_FIELDS = tuple(name for name in Task._fields if name not in _RELATIVES)
_SCALARS = (str, int, float, bool)
_NUMBERS = frozenset({"pid", "freq", "clock", "active", "processed", "retries", "timestamp", "runtime"}) | {
    "received",
    "sent",
    "started",
    "rejected",
    "succeeded",
    "failed",
    "retried",
    "revoked",
}


class KeptEvents(Events):
    """Flower's events. Their state is read from and written to antrean's JSON file."""

    def __init__(
        self, *args: Any, max_tasks_in_memory: int, max_workers_in_memory: int = 500, **given: Any
    ) -> None:
        self._limits = {
            "max_tasks_in_memory": max_tasks_in_memory,
            "max_workers_in_memory": max_workers_in_memory,
        }
        super().__init__(*args, **self._limits, **given)

    def load_state(self) -> EventsState | None:
        """The state in the file. None if it is missing, or cannot be read; then the file is set aside."""
        path = Path(self.db)
        try:
            with open(open_private(path, os.O_RDONLY), "rb") as file:
                return decode_state(file.read(), **self._limits)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:
            aside = path.with_name(f"{path.name}.unreadable")
            log.warning("flower.history_set_aside", file=aside.name, error=str(exc))
            try:
                path.replace(aside)
            except OSError as other:
                log.warning("flower.history_stays", file=path.name, error=other.strerror)
            return None

    def save_state(self) -> None:
        """Replaces the file in one step. A failure is logged; the next save tries again."""
        path = Path(self.db)
        draft = path.with_name(f"{path.name}.new")
        try:
            with open(open_private(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
                file.write(encode_state(self.state))
            draft.replace(path)
        except OSError as exc:
            log.warning("flower.history_unsaved", file=path.name, error=exc.strerror)


def encode_state(state: EventsState) -> bytes:
    """The state as JSON: names and numbers of its workers and tasks, the least recently used first."""
    return orjson.dumps(
        {
            "format": _FORMAT,
            "workers": [_plain(vars_of(worker, Worker._fields)) for _, worker in state.workers.items()],
            "tasks": [_encode_task(task) for _, task in state.tasks.items()],
            "counters": {name: dict(counted) for name, counted in state.counter.items()},
        },
        option=orjson.OPT_NON_STR_KEYS,
    )


def decode_state(data: bytes, **limits: int) -> EventsState:
    """The state that `encode_state` wrote. Raises ValueError for anything else."""
    kept = orjson.loads(data)
    if not isinstance(kept, dict) or kept.get("format") != _FORMAT:
        raise ValueError("it is no history of this version")
    state = EventsState(**limits)
    try:
        for fields in kept["workers"]:
            worker = Worker(**_checked(fields, Worker._fields))
            state.workers[worker.hostname] = worker
        for fields in kept["tasks"]:
            _add_task(state, _checked(fields, _TASK_FIELDS))
        for name, counted in kept["counters"].items():
            state.counter[name] = Counter({str(kind): int(count) for kind, count in counted.items()})
        state.rebuild_taskheap()
        state.search_engine.rebuild(state.tasks.items())
    except (TypeError, KeyError, AttributeError) as exc:
        raise ValueError(f"it holds what no history holds ({type(exc).__name__})") from None
    return state


def vars_of(thing: object, names: tuple[str, ...]) -> dict[str, Any]:
    """The attributes that are set, by name."""
    return {name: value for name in names if (value := getattr(thing, name, None)) is not None}


def _encode_task(task: Task) -> dict[str, Any]:
    fields = vars_of(task, _TASK_FIELDS)
    if isinstance(fields.get("worker"), Worker):
        fields["worker"] = fields["worker"].hostname
    return _plain(fields)


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields whose values are plain JSON. The others are not shown on any page."""
    return {name: value for name, value in fields.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    return isinstance(value, _SCALARS) or (
        isinstance(value, list) and all(isinstance(one, (int, float)) for one in value)
    )


def _checked(fields: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """`fields`, if they can be those of a worker or a task. Raises ValueError otherwise."""
    if (
        not isinstance(fields, dict)
        or not fields.keys() <= set(names)
        or not isinstance(fields.get(names[0]), str)
    ):
        raise ValueError("it holds what no history holds")
    for name, value in fields.items():
        is_fit = isinstance(value, (int, float)) if name in _NUMBERS else _is_plain(value)
        if not is_fit or (name == "heartbeats" and not isinstance(value, list)):
            raise ValueError(f"it holds what no history holds ({name})")
    return fields


def _add_task(state: EventsState, fields: dict[str, Any]) -> None:
    hostname = fields.pop("worker", None)
    task = Task(cluster_state=state, **fields)
    if hostname is not None:
        task.worker, _ = state.get_or_create_worker(str(hostname))
        state.tasks_by_worker[task.worker.hostname].add(task)
    if task.name is not None:
        state.tasks_by_type[task.name].add(task)
    state.tasks[str(task.uuid)] = task
