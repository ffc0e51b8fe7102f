"""Flower's options for antrean, the same for every command that starts Flower; and the parts of Flower it replaces.

`worker/flower/config.py`, which Flower reads, calls `prepare_flower`. Flower's own command line and its FLOWER_
variables take precedence over the options decided here.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import flower.app
import flower.command
import flower.events
import flower.urls
import flower.views
import structlog
from celery.events import EventReceiver
from flower.views.monitor import Metrics
from tornado import web
from tornado.netutil import bind_sockets
from tornado.options import options

from worker.consume.request import NO_ARGS, NO_KWARGS
from worker.errors import SettingsError, Unreachable
from worker.files.home import open_lock_file, prepare_home, try_lock
from worker.files.private import open_private
from worker.flower.guard import GuardedFlower, get_current_user, is_loopback
from worker.flower.history import KeptEvents
from worker.logs.setup import configure_logs
from worker.settings import IN_STACK, Settings, load_settings, warn_of_unknown_names
from worker.stack.attachment import Stack
from worker.startup import end_with
from worker.text.names import as_name

log = structlog.get_logger(__name__)

USER = "antrean"
MAX_TASKS = 10_000  # about 6 KB each
MAX_WORKERS = 500
SAVE_INTERVAL_MS = 30_000
PURGE_OFFLINE_AFTER_S = 3600
# These columns fit a window of 1,280 pixels. The name is left out, as all tasks have the same; the runtime is in the
# result. The least needed ones come last, where a narrower window cuts them off; half an id is enough to click on.
_COLUMNS = "state,result,exception,uuid,retries,received,worker"
_QUOTED = re.compile(r"(?:JobFailed\()?'([^'\\]*)'\)?")
_BLANK = {"args": NO_ARGS, "kwargs": NO_KWARGS}
_TOLD = ("type", "uuid", "hostname", "result", "exception")  # fields that our workers write themselves
_held: list[object] = []  # kept open until this process ends: the stack, and the lock on the history


def prepare_flower() -> dict[str, Any]:
    """The options of Flower in this process. Prepares all that they need.

    Attaches to the embedded stack if no broker is configured. On an error, prints a sentence and ends the process with
    the exit code.
    """
    configure_logs()  # first of all: errors from here on are logged without the texts that they quote
    try:
        warn_of_unknown_names()
        settings = load_settings()
        configure_logs(settings.log_level)
        said = _said_to_flower()
        is_open = not settings.flower_auth and not said.get("basic_auth") and not said.get("auth")
        address = str(said.get("address", settings.flower_address))
        port = int(said.get("port", settings.flower_port))
        check_exposure(address, is_open=is_open, unix_socket=bool(said.get("unix_socket")))
        if not said.get("unix_socket"):
            _check_port(address, port)
        home = prepare_home(settings.home, has_broker=settings.is_broker_embedded)
        if settings.is_broker_embedded and IN_STACK not in os.environ:
            stack = Stack.attach(home)
            stack.ensure_broker()
            _held.append(stack)
        asks = settings.flower_auth and not said.keys() & {"basic_auth", "auth"}
        ours = decide_options(
            settings,
            password=_password(settings, home) if asks else None,
            cookie_secret=kept_secret(home / "flower.cookie-secret"),
            database=_history(home),
        )
    except Exception as exc:  # any error: without these options Flower would be open to everybody
        end_with(exc)
    _put_flower_right()
    return {name: value for name, value in ours.items() if name not in said}


def decide_options(
    settings: Settings, *, password: str | None, cookie_secret: str, database: Path | None
) -> dict[str, Any]:
    """Flower's options by name. Pure. `password` None: Flower asks for none. `database` None: it keeps no history."""
    return {
        "address": settings.flower_address,
        "port": settings.flower_port,
        "basic_auth": [] if password is None else [f"{USER}:{password}"],
        "cookie_secret": cookie_secret,
        "read_only": True,
        "max_tasks": MAX_TASKS,
        "max_workers": MAX_WORKERS,
        "purge_offline_workers": PURGE_OFFLINE_AFTER_S,
        "persistent": database is not None,
        "db": str(database or "flower"),
        "state_save_interval": SAVE_INTERVAL_MS if database is not None else 0,
        "natural_time": True,
        "tasks_columns": _COLUMNS,
        "format_task": format_task,
        "logging": settings.log_level,
    }


def format_task(task: Any) -> Any:
    """The task for a page. Results and exceptions come in events as Python's `repr`; here as `35 tokens · stop` or
    `server_error`.

    Changes `task`, which is Flower's copy.
    """
    for name in ("result", "exception"):
        if found := _QUOTED.fullmatch(getattr(task, name, None) or ""):
            setattr(task, name, found[1])
    return task


def check_exposure(address: str, *, is_open: bool, unix_socket: bool = False) -> None:
    """Raises SettingsError if Flower would be open, without a password, to others than this machine."""
    if is_open and (unix_socket or not is_loopback(address)):
        where = "a unix socket (Flower makes it world-writable)" if unix_socket else (address or "0.0.0.0")
        raise SettingsError(
            [
                f"ANTREAN_FLOWER_AUTH=off goes with a loopback address only, and this is {where}: keep the "
                "password, or listen on 127.0.0.1 behind a proxy that asks for one"
            ]
        )


def kept_secret(path: Path) -> str:
    """The secret in the file at `path`. The file is made if it is missing; only its owner can read it.

    Raises SettingsError.
    """
    try:
        _make_once(path)
        with open(open_private(path, os.O_RDONLY), encoding="utf-8") as file:
            secret = file.read().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError([f"{path} cannot be used ({exc}): remove it, and another is made"]) from None
    if not secret.isascii() or not secret.isprintable() or not secret:
        raise SettingsError([f"{path} must hold one line of printable ASCII: remove it, and another is made"])
    return secret


def _make_once(path: Path) -> None:
    if path.exists():
        return
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with open(open_private(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w", encoding="utf-8") as file:
        file.write(secrets.token_urlsafe(18) + "\n")
    # A link, unlike a rename, does not replace a file that another process has made meanwhile.
    with contextlib.suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()


def _password(settings: Settings, home: Path) -> str:
    if settings.flower_password is None:
        path = home / "flower.password"
        password = kept_secret(path)
        log.info("flower.password", user=USER, is_in=str(path))
        return password
    password = settings.flower_password.get_secret_value()
    if not password.isascii() or not password.isprintable():
        raise SettingsError(["ANTREAN_FLOWER_PASSWORD: must be printable ASCII"])
    log.info("flower.password", user=USER, is_in="ANTREAN_FLOWER_PASSWORD")
    return password


def _history(home: Path) -> Path | None:
    """The file in which Flower keeps its tasks across a restart; None while another Flower of this home uses it."""
    lock = open_lock_file(home / "flower.lock")
    if not try_lock(lock):
        os.close(lock)
        log.warning("flower.history_in_use", home=str(home))
        return None
    _held.append(lock)
    return home / "flower.history.json"


def _check_port(address: str, port: int) -> None:
    try:
        for socket in bind_sockets(port, address=address):
            socket.close()
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or "it is no address"
        raise Unreachable(
            f"{address}:{port} cannot be listened on ({reason}): choose another port with --port or "
            "ANTREAN_FLOWER_PORT"
        ) from None


def _said_to_flower() -> Mapping[str, Any]:
    """The options that Flower's command line or FLOWER_ variables have set, by name with underscores."""
    return {
        option.name.replace("-", "_"): option.value()
        for option in options._options.values()
        if option._value is not type(option).UNSET and option.name != "conf"
    }


# The following classes replace parts of Flower that no setting changes.


class GuardedMetrics(Metrics):
    """`/metrics` with the same login as the other pages. Flower itself leaves it open."""

    @web.authenticated
    async def get(self) -> None:
        await super().get()


class BlankReceiver(EventReceiver):
    """Receives events, and keeps only names and numbers of them: a foreign producer's events may hold a prompt."""

    def __init__(self, channel: Any, **given: Any) -> None:
        # Flower itself doubles its wait after each failure, without a limit.
        channel.ensure_connection(errback=_say_broker_away, interval_start=1, interval_step=1, interval_max=5)
        super().__init__(channel, **given)

    def process(self, type: str, event: dict[str, Any]) -> None:
        if type.startswith("task-"):
            for name, value in event.items():
                if name not in _TOLD and not isinstance(value, (int, float)):
                    event[name] = _BLANK.get(name) or as_name(value)
        super().process(type, event)


def _say_broker_away(exc: BaseException, wait_s: float) -> None:
    log.warning("flower.broker_away", error=type(exc).__name__, retry_in_s=wait_s)


def _stop(number: int, _frame: object) -> NoReturn:
    """Ends this process on SIGTERM, as Flower does, but without Flower's message "15 detected"."""
    log.info("flower.stopping", signal=signal.Signals(number).name)
    sys.exit(0)


def _put_flower_right() -> None:
    flower.command.sigterm_handler = _stop
    flower.events.EventReceiver = BlankReceiver
    flower.app.Events = KeptEvents
    flower.command.Flower = GuardedFlower
    flower.views.BaseHandler.get_current_user = get_current_user
    flower.urls.handlers[:] = [
        (handler[0], GuardedMetrics) if isinstance(handler, tuple) and handler[1] is Metrics else handler
        for handler in flower.urls.handlers
    ]
