"""The paths of an embedded stack's files, sockets and locks. They depend on the home folder alone.

Nothing here depends on the environment, so that a shell, a cron job and a child process use the same addresses.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from worker.errors import SettingsError, Unreachable
from worker.files.disk import describe_full_disk
from worker.files.private import (
    close_home,
    find_distrust,
    find_foreign_broker_data,
    make_private_folder,
    open_private,
)

# sun_path holds 108 bytes on Linux and 104 on macOS, one of them the closing NUL.
_SOCKET_PATH_MAX_BYTES = 107 if sys.platform == "linux" else 103
_LONGEST_SOCKET_NAME = "keeper.sock"
_LOG_MAX_BYTES = 10 * 1024 * 1024
# The characters that a broker URL can hold without quoting. A `;` would split it into two brokers.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9._~/-]+")


def runtime_folder(home: Path) -> Path:
    """The folder of the stack's sockets: `<home>/run`, or a short private one in /tmp.

    The one in /tmp is used if a socket's path would be longer than the system allows, or needs quoting in a URL.
    Pure: it creates nothing.
    """
    folder = Path(os.path.realpath(home), "run")
    longest = str(folder / _LONGEST_SOCKET_NAME)
    if len(os.fsencode(longest)) <= _SOCKET_PATH_MAX_BYTES and _PLAIN_PATH.fullmatch(longest):
        return folder
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(f"/tmp/antrean-{os.getuid()}-{digest}")


def broker_socket(home: Path) -> Path:
    return runtime_folder(home) / "valkey.sock"


def control_socket(home: Path) -> Path:
    return runtime_folder(home) / "keeper.sock"


def broker_url(home: Path) -> str:
    """The embedded broker's URL for kombu, whether the broker runs or not."""
    return f"redis+socket://{broker_socket(home)}?virtual_host=0"


def prepare_home(home: Path, *, has_broker: bool) -> Path:
    """The real path of `home`. It and its inner folders are made if they are missing, for this user alone.

    A home that exists keeps its mode, so that others may list it if they could before; what antrean keeps in it is
    closed to them. `has_broker`: an embedded broker is to run there. Raises SettingsError if the home cannot be
    written, if another user could write there, or if its folder `valkey` holds another Valkey's data; Unreachable if
    its disk is full.
    """
    real_home = Path(os.path.realpath(home))
    try:
        foreign = find_foreign_broker_data(real_home) if has_broker else None
        if foreign is not None:
            raise SettingsError(
                [
                    f"{real_home / 'valkey'} is not antrean's: it holds {foreign} of another Valkey. Choose another "
                    f"folder with ANTREAN_HOME, or move it away"
                ]
            )
        make_private_folder(real_home)
        distrust = find_distrust(real_home)
        if distrust is not None:
            raise SettingsError([f"{real_home} {distrust.reason}: choose another folder with ANTREAN_HOME"])
        for name in ("logs", "valkey"):
            make_private_folder(real_home / name)
        close_home(real_home)
        os.close(open_private(real_home / "stack.lock", os.O_RDWR | os.O_CREAT))
    except OSError as exc:
        reason = exc.strerror or "no reason given"
        raise SettingsError(
            [
                f"{exc.filename or real_home} cannot be written ({reason}): choose another folder with ANTREAN_HOME"
            ]
        ) from None
    if (sentence := describe_full_disk([real_home])) is not None:
        raise Unreachable(sentence)  # else the broker, logs and locks would fail, each with another message
    _prepare_runtime_folder(runtime_folder(real_home), real_home)
    return real_home


def check_runtime_folder(home: Path) -> None:
    """Raises AntreanError if the sockets' folder belongs to another user. It may be in /tmp."""
    distrust = find_distrust(runtime_folder(home))
    if distrust is not None:
        raise _not_yours(runtime_folder(home))


def open_lock_file(path: Path) -> int:
    """A descriptor of the lock file at `path`, which is made if it is missing. Takes no lock. Raises SettingsError."""
    try:
        return open_private(path, os.O_RDWR | os.O_CREAT)
    except OSError as exc:
        raise SettingsError(
            [f"{path} cannot be used ({exc.strerror}): remove it, or choose another ANTREAN_HOME"]
        ) from None


def try_lock(descriptor: int) -> bool:
    """Tries to take the lock. True: this process has it now, and so has every process that inherits `descriptor`."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_log(path: Path) -> BinaryIO:
    """A log file to append to. If it has more than 10 MB, it is moved to `<path>.1` first."""
    if path.exists() and path.stat().st_size > _LOG_MAX_BYTES:
        path.replace(path.with_name(path.name + ".1"))
    return os.fdopen(open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


def log_of_service(home: Path, service: str) -> Path:
    """The log file of a service of the stack. The broker's is named after its program."""
    return home / "logs" / f"{'valkey' if service == 'broker' else service}.log"


def last_line(log: Path) -> str:
    """The last line of a log file that is not blank, cut at 300 characters; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _prepare_runtime_folder(folder: Path, home: Path) -> None:
    """Makes the sockets' folder. In /tmp, a folder that another user has made first is refused.

    In the home, a folder that exists may hold other things, too: it keeps its mode. The sockets in it are private
    themselves.
    """
    try:
        folder.mkdir(mode=0o700)
        folder.chmod(0o700)  # the umask may have removed rights of this user, too
    except FileExistsError:
        facts = folder.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():  # a file or a dangling link, too
            raise _not_yours(folder) from None
        if folder.parent != home:
            folder.chmod(0o700)  # only antrean makes folders of this name
        elif (distrust := find_distrust(folder)) is not None:
            raise SettingsError(
                [f"{folder} {distrust.reason}: choose another folder with ANTREAN_HOME"]
            ) from None
    except OSError as exc:
        reason = exc.strerror or "no reason given"
        raise SettingsError([f"{folder} cannot be made ({reason}): choose another ANTREAN_HOME"]) from None


def _not_yours(folder: Path) -> SettingsError:
    return SettingsError([f"{folder} is not a folder of yours: remove it, or choose another ANTREAN_HOME"])
