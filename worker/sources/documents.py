"""Documents: the text files of a folder, checked once and read again when their request is made."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from worker.errors import InputError
from worker.sources.problems import input_error, why

# What counts as a document in a folder. A file that is named itself may have any suffix.
SUFFIXES = (
    *(".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex", ".html", ".htm", ".xml"),
    *(".csv", ".tsv", ".json", ".yaml", ".yml", ".log", ".eml", ".srt", ".vtt"),
)
LARGEST_BYTES = 32 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Document:
    """A text file. `root` is an absolute folder, `relative` the way from it, with slashes."""

    root: Path
    relative: str

    @property
    def path(self) -> Path:
        """Where it is, absolute."""
        return self.root / self.relative

    @property
    def name(self) -> str:
        return PurePosixPath(self.relative).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.relative).stem

    def read(self) -> str:
        """Its text, without a byte order mark. Raises InputError if it is not what it was when checked."""
        try:
            return _decode(_read(self.path))
        except _Unusable as exc:
            raise input_error(self.relative, [f"{self.relative}: {exc}"]) from None


@dataclass(frozen=True, slots=True)
class DocumentSet:
    """Documents in the order of their relative paths, and how many files were left out.

    `skipped` files are of other kinds; `empty` ones hold nothing to send.
    """

    root: Path
    documents: list[Document]
    skipped: int = 0
    empty: int = 0


class _Unusable(Exception):
    """A file that cannot be a document; its text is the rest of a sentence."""


def find_documents(path: Path) -> DocumentSet:
    """The documents of a folder and the folders in it, or the one file at `path`.

    Reads each file once, one at a time, to check it. Hidden files and folders (`.git`) are left out; links
    are followed, each folder once. Raises InputError that names every problem at once.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"No such file or folder: {path}") from None
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({why(exc)})") from None
    if kind not in (stat.S_IFDIR, stat.S_IFREG):
        # It is read twice, once to check it: a pipe is empty by then. And its path is what its job is known by.
        raise InputError(f"{path} is neither a file nor a folder")
    problems: list[str] = []
    if kind == stat.S_IFDIR:
        root, skipped = path.absolute(), 0
        found: list[str] = []
        for name, is_document in _walk(root, "", set(), problems):
            if is_document:
                found.append(name)
            else:
                skipped += 1
    else:
        root, found, skipped = path.absolute().parent, [path.name], 0
    documents, empty = _check([Document(root, name) for name in sorted(found)], problems)
    if problems:
        raise input_error(str(path), problems)
    if not documents:
        raise _nothing(path, skipped=skipped, empty=empty)
    return DocumentSet(root, documents, skipped, empty)


def source_key(document: Document, base: Path) -> str:
    """What names the document in the ledger: its resolved path, from `base` where it lies inside it."""
    path = document.path.resolve()
    base = base.resolve()
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()


def _walk(
    root: Path, within: str, seen: set[tuple[int, int]], problems: list[str]
) -> Iterator[tuple[str, bool]]:
    """Relative paths of the files below `root`, and whether each counts as a document, in no order."""
    folders = [within]
    while folders:
        folder = folders.pop()
        try:
            facts = (root / folder).stat()
            if (facts.st_dev, facts.st_ino) in seen:
                continue  # a link that leads back
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(root / folder) as scan:
                entries = sorted(scan, key=lambda entry: (entry.is_symlink(), entry.name), reverse=True)
        except OSError as exc:
            problems.append(f"{folder or root}: the folder cannot be read ({why(exc)})")
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            relative = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if entry.is_dir():
                    folders.append(relative)
                    continue
                # A link that dangles is named as a problem; a pipe would never end.
                is_file = entry.is_file() or not Path(entry.path).exists()
            except OSError as exc:
                problems.append(f"{_shown(relative)}: cannot be read ({why(exc)})")
                continue
            yield relative, is_file and Path(entry.name).suffix.lower() in SUFFIXES


def _check(candidates: list[Document], problems: list[str]) -> tuple[list[Document], int]:
    """Those that can be sent, and the number of empty ones; adds what is wrong to `problems`."""
    usable: list[Document] = []
    empty = 0
    for document in candidates:
        try:
            if not _is_utf8(document.relative):
                raise _Unusable("its name is not UTF-8; rename it")
            text = _decode(_read(document.path))
        except _Unusable as exc:
            problems.append(f"{_shown(document.relative)}: {exc}")
            continue
        if text.strip():
            usable.append(document)
        else:
            empty += 1
    return usable, empty


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_BYTES + 1)
    except OSError as exc:
        raise _Unusable(f"cannot be read ({why(exc)})") from None
    if len(raw) > LARGEST_BYTES:
        raise _Unusable(f"is larger than {LARGEST_BYTES // 2**20} MiB; split it")
    return raw


def _decode(raw: bytes) -> str:
    try:
        return raw.removeprefix(_BOM).decode()
    except UnicodeDecodeError as exc:
        offset = exc.start + (len(_BOM) if raw.startswith(_BOM) else 0)
        raise _Unusable(f"is not UTF-8 text (byte {offset:,}); save it as UTF-8") from None


def _nothing(path: Path, *, skipped: int, empty: int) -> InputError:
    if empty:
        problem = f"{path} holds no documents: {empty:,} found, and all are empty"
    else:
        looked_for = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
        problem = f"{path} holds no documents (looked for {looked_for})"
        if skipped:
            problem += f"; files of other kinds: {skipped:,}"
    return InputError(problem)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    """A file's name that any terminal can print."""
    return name.encode("utf-8", "backslashreplace").decode()
