"""Whether this machine has room for the slots that were asked for: open files and threads, checked before work begins.

A worker that runs out of either in the middle of it fails calls that nothing is wrong with.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from schemas.shortage import describe_shortage, is_local_shortage
from worker.errors import SettingsError, Unreachable
from worker.settings import Settings

# Beside the calls: sixteen connections to the ledger (three files each where it is SQLite), those to the broker, the
# log, locks, the spool, name resolution, and what Python opens for a moment.
_OTHER_FILES = 100
# Heartbeat, relay, limiter, writer, deadlines, name resolution, the way out and its timer, and one to spare.
_OTHER_THREADS = 9


def make_room(settings: Settings) -> Settings:
    """Raises this process's limit of open files to what the slots need, as far as it may.

    Returns the settings. With `auto` as concurrency, its maximum is lowered to what fits. Raises SettingsError where
    the slots of a number do not fit, with the number that would, and where not even one slot fits.
    """
    files = _raise_file_limit(_files_for(settings))
    if files is not None and files < _files_for(settings):
        settings = _fit(settings, "open files", files, _files_for, "raise its hard limit (`ulimit -n`)")
    threads = count_startable_threads(_threads_for(settings))
    if threads < _threads_for(settings):
        settings = _fit(settings, "threads", threads, _threads_for, "raise the limit of processes")
    return settings


@contextmanager
def threads_needed() -> Iterator[None]:
    """Raises Unreachable with a sentence where a thread does not begin that a worker cannot do without.

    Others of the same user may have taken them since they were counted.
    """
    try:
        yield
    except RuntimeError as exc:
        if not is_local_shortage(exc):
            raise
        raise Unreachable(
            f"{describe_shortage(exc)}: raise the limit of processes (`ulimit -u`), or end something else"
        ) from exc


def _files_for(settings: Settings) -> int:
    return settings.call_count + _OTHER_FILES


def _threads_for(settings: Settings) -> int:
    return settings.thread_count + _OTHER_THREADS


def _fit(
    settings: Settings, of_what: str, allowed: int, need: Callable[[Settings], int], remedy: str
) -> Settings:
    """These settings with as many slots as fit, where their number is free. Raises SettingsError where it is not."""
    if settings.endpoint_tables:
        return _fit_tables(settings, of_what, allowed, need, remedy)
    name = "max_concurrency" if settings.is_adaptive else "concurrency"
    fitting = slots = getattr(settings, name)
    while fitting and need(settings.model_copy(update={name: fitting})) > allowed:
        fitting -= 1
    if settings.is_adaptive and fitting:
        return settings.model_copy(update={name: fitting})
    advice = f"set it to {fitting} at most, or {remedy}" if fitting else remedy
    raise SettingsError(
        [
            f"ANTREAN_{name.upper()}: {slots} slots need {need(settings)} {of_what}, and this process"
            f" may have {allowed}: {advice}"
        ]
    )


def _fit_tables(
    settings: Settings, of_what: str, allowed: int, need: Callable[[Settings], int], remedy: str
) -> Settings:
    """The same with several endpoints: none of those whose number is free has more slots than fit for all."""
    free = [one.max_concurrency for one in settings.endpoint_tables if one.is_adaptive]
    for most in range(max(free, default=0), 0, -1):
        fitting = settings.model_copy(
            update={"endpoint_tables": tuple(one.with_most(most) for one in settings.endpoint_tables)}
        )
        if need(fitting) <= allowed:
            return fitting
    raise SettingsError(
        [
            f"the endpoints of the tables need {need(settings)} {of_what} together, and this process may have "
            f"{allowed}: lower the `concurrency` of some, or {remedy}"
        ]
    )


def _raise_file_limit(wanted: int) -> int | None:
    """How many files this process may have open now; None: no limit. Raises the soft limit to `wanted`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    if soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        except (OSError, ValueError):  # a system that says more than it gives
            return soft
        return raised
    return soft


def count_startable_threads(wanted: int) -> int:
    """How many of `wanted` threads can run at once beside those that do. It starts them, because no system says it."""
    enough = threading.Event()
    begun: list[threading.Thread] = []
    try:
        for _ in range(wanted):
            thread = threading.Thread(target=enough.wait, daemon=True)
            thread.start()
            begun.append(thread)
    except RuntimeError:
        pass  # one more cannot begin, which is the answer
    finally:
        enough.set()
        for thread in begun:
            thread.join()
    return len(begun)
