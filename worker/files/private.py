"""Files that antrean writes for itself. Other users cannot read them; a file that others may have written is refused.

Files of results are not opened here: they go where the user says, with the user's umask.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

# The folders of a home, except the sockets', and the names of the files in each. An older version, or the user, may
# have left them open to others.
_HOME_FOLDERS = {
    "logs": ("*.log", "*.log.1"),
    "valkey": ("appendonly*", "*.rdb", "temp-*"),
    "valkey.broken": ("*",),
    "spool": ("*.spool", "rejected.jsonl"),
    "workers": ("*.lock", "*.new"),
    "runs": ("*.lock",),
    "simulation": (),  # a home itself
}
_LOCKS = tuple(f"{name}.lock" for name in ("stack", "start", "broker", "up", "flower"))
_HOME_FILES = (
    *(f"antrean.db{suffix}" for suffix in ("", "-wal", "-shm", "-journal")),
    *(f"flower.db{suffix}" for suffix in ("", ".dat", ".dir", ".bak", ".db")),
    *("flower.history.json", "flower.cookie-secret", "flower.password"),
    *_LOCKS,
)
_BEGINNINGS_IN_A_HOME = ("antrean.db", "flower.", "valkey", *_LOCKS)
_MARKS_OF_A_HOME = ("stack.lock", "antrean.db")  # the first command in a home makes one of them
_ROOT = 0
_OF_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class Distrust:
    """Why the file or folder at a path is not used. `reason`: the end of a sentence that begins with the path."""

    reason: str
    is_ended_by_chmod: bool = False  # it belongs to this user, but others can write there


def find_distrust(path: Path, *, root_is_trusted: bool = False) -> Distrust | None:
    """Why another user may have written what is at `path`; None if that is impossible, or `path` does not exist.

    A link and its target are both checked. A group whose only member is this user counts as this user: many systems
    give such a group write access by default. A path that cannot be examined is not trusted.
    """
    trusted = {os.geteuid(), _ROOT} if root_is_trusted else {os.geteuid()}
    try:
        link, facts = path.lstat(), path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None  # the caller makes it, and gets its own error if that fails
    except OSError as exc:
        return Distrust(f"cannot be looked at ({exc.strerror})")
    if link.st_uid not in trusted | {_ROOT}:
        return Distrust(f"belongs to {name_user(link.st_uid)}")
    if facts.st_uid not in trusted:
        return Distrust(f"belongs to {name_user(facts.st_uid)}")
    if facts.st_mode & stat.S_IWOTH:
        return Distrust("can be written by everybody", is_ended_by_chmod=True)
    if facts.st_mode & stat.S_IWGRP and not _is_private_group(facts.st_gid):
        return Distrust(f"can be written by the group {_name_group(facts.st_gid)}", is_ended_by_chmod=True)
    return None


def make_private_folder(folder: Path) -> None:
    """Makes `folder` and its missing parents, for this user alone, whatever the umask.

    A folder that exists keeps its mode. Raises OSError.
    """
    if folder.is_dir():
        return
    make_private_folder(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        folder.chmod(0o700)  # the umask may have removed rights of this user, too


def prepare_folder(folder: Path) -> None:
    """As `make_private_folder`. Raises OSError also if the folder exists and others can write in it.

    Its mode is not changed: the home may be a folder that holds other things, too, and this may be one of them.
    """
    make_private_folder(folder)
    distrust = find_distrust(folder)
    if distrust is not None:
        raise PermissionError(errno.EPERM, f"it {distrust.reason}", str(folder))


def close_home(home: Path) -> None:
    """Makes all that antrean keeps in `home` private to this user. The home itself keeps its mode. Raises OSError.

    Nothing is changed in a folder that is no home yet: its `logs` belong to something else. Targets of links are not
    changed. Neither are folders of a home that holds other things, such as a project folder, nor a folder that holds
    other things itself.
    """
    if not any((home / name).is_file() for name in _MARKS_OF_A_HOME):
        return
    if _is_a_home_alone(home):
        for name in _HOME_FOLDERS:
            folder = home / name
            if folder.is_dir() and not folder.is_symlink() and _is_antreans(folder):
                prepare_folder(folder)
                _close(folder, folder.stat().st_mode)
    for name in _HOME_FILES:
        close_file(home / name)


def find_foreign_broker_data(home: Path) -> str | None:
    """The name of data in `<home>/valkey` that another Valkey made; None if there are none. Raises OSError.

    Data are another Valkey's if they lie there before the home's first embedded broker. A home has its `broker.lock`
    from then on. What no Valkey reads or writes is in nobody's way.
    """
    folder = home / "valkey"
    if not folder.is_dir() or (home / "broker.lock").is_file():
        return None
    names = sorted(path.name for path in folder.iterdir())
    return next((one for one in names if _is_made_in(folder.name, one)), None)


def holds_only_broker_data(folder: Path) -> bool:
    """Whether nothing is in the folder `valkey` of a home but what a Valkey makes. Raises OSError."""
    return _is_antreans(folder)


def _is_made_in(folder: str, name: str) -> bool:
    """Whether antrean itself puts something of that name in that folder of a home."""
    return any(fnmatchcase(name, one) for one in _HOME_FOLDERS[folder])


def _is_a_home_alone(home: Path) -> bool:
    return all(_is_of_a_home(path.name) for path in home.iterdir())


def _is_antreans(folder: Path) -> bool:
    """Whether the folder holds only files that antrean itself puts there."""
    if not _HOME_FOLDERS[folder.name]:
        return _is_a_home_alone(folder)
    return all(_is_made_in(folder.name, path.name) for path in folder.iterdir())


def _is_of_a_home(name: str) -> bool:
    return name in _HOME_FOLDERS or name in ("run", "antrean.toml") or name.startswith(_BEGINNINGS_IN_A_HOME)


def open_private(path: Path, flags: int) -> int:
    """A descriptor of a file that only this user can use; it is closed at exec. With O_CREAT the file is made.

    A file that exists is made private. Raises OSError, also for a link, and for a file of another user.
    """
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link", str(path)) from None
        raise
    try:
        facts = os.fstat(descriptor)
        if facts.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"it belongs to {name_user(facts.st_uid)}", str(path))
        # Not for devices: with another mode of /dev/null nobody else could use it.
        if stat.S_ISREG(facts.st_mode) and stat.S_IMODE(facts.st_mode) != 0o600:
            os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def close_file(path: Path) -> None:
    """Makes a file private without opening it. A missing one is ignored. Raises OSError if it is another user's."""
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return
    if facts.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"it belongs to {name_user(facts.st_uid)}", str(path))
    if stat.S_ISREG(facts.st_mode):
        _close(path, facts.st_mode)


def _close(path: Path, mode: int) -> None:
    if not mode & _OF_OTHERS:
        return
    try:
        path.chmod(stat.S_IMODE(mode) & ~_OF_OTHERS)
    except OSError as exc:
        # ENOENT: removed meanwhile. EROFS: on a read-only disk the mode cannot be changed, and need not be.
        if exc.errno not in (errno.ENOENT, errno.EROFS):
            raise


def name_user(uid: int) -> str:
    """The user's name, or `the user 1000` if the uid has no name on this machine."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user {uid}"


def _name_group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _is_private_group(gid: int) -> bool:
    """Whether this user is the group's only member. False for an unknown group."""
    me = os.geteuid()
    try:
        group, name = grp.getgrgid(gid), pwd.getpwuid(me).pw_name
    except KeyError:
        return False
    members = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == gid}
    return members == {me} and set(group.gr_mem) <= {name}
