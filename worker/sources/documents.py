"""Documents: the text files of a folder, checked once and read again when their request is made."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from worker.errors import InputError
from worker.files.names import FileName, as_text, is_utf8
from worker.sources.folder import SUFFIXES, walk
from worker.sources.left_out import LeftOut, Reason
from worker.sources.own_files import OwnFiles
from worker.sources.pipes import is_stream
from worker.sources.problems import input_error, why

LARGEST_BYTES = 32 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Document:
    """A text file. `root` is an absolute folder, `way` the path relative to it, with slashes."""

    root: Path
    way: FileName

    @property
    def path(self) -> Path:
        """Where it is, absolute."""
        return self.root / self.way

    @property
    def relative(self) -> str:
        """The path relative to `root`, as text. This form is shown and stored; it is the same in every locale."""
        return as_text(self.way)

    @property
    def name(self) -> str:
        return PurePosixPath(self.relative).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.relative).stem

    def read(self) -> str:
        """Its text, without a byte order mark. Raises InputError if the file has become unusable since the check."""
        try:
            return _decode(_read(self.path))
        except _Unusable as exc:
            raise input_error(self.relative, [f"{self.relative}: {exc}"]) from None


@dataclass(frozen=True, slots=True)
class DocumentSet:
    """Documents and the files that were left out, each sorted by relative path."""

    root: Path
    documents: list[Document]
    left_out: list[LeftOut] = field(default_factory=list)

    def count_left_out(self, reason: Reason) -> int:
        """The number of files that were left out for this reason."""
        return sum(one.reason is reason for one in self.left_out)


class UnreadableDocuments(InputError):
    """Some documents cannot be read. `find_documents(…, skips_unreadable=True)` gives the others."""


class _Unusable(Exception):
    """A file that cannot be a document; its text is the rest of a sentence."""


def find_documents(path: Path, *, own: OwnFiles | None = None, skips_unreadable: bool = False) -> DocumentSet:
    """The documents of a folder and of the folders in it, or the one file at `path`.

    Reads each file once, one at a time, to check it. Left out are hidden files, those of other kinds, antrean's own,
    and links that lead out of the folder. A link to a document in the folder is a further document. Each folder is read
    once.
    Raises InputError; UnreadableDocuments, which names all of them at once, unless they are to be skipped.
    """
    if is_stream(path):
        raise InputError(
            f"{path} has no name that its document could be known by: save it to a file (requests, one a line, "
            "are read from a pipe, without a prompt)"
        )
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"No such file or folder: {path}") from None
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({why(exc)})") from None
    if kind not in (stat.S_IFDIR, stat.S_IFREG):
        # A document is read twice: to check it, and to make its request. A pipe would be empty the second time.
        # And the path identifies the job; a pipe has none.
        raise InputError(f"{path} is neither a file nor a folder")
    own = own or OwnFiles()
    if (words := own.describe(path)) is not None:
        raise InputError(f"{path} is {words}: name a document, or a folder of documents alone")
    left_out: list[LeftOut] = []
    candidates: list[FileName] = []
    if kind == stat.S_IFDIR:
        root = path.absolute()
        for found in walk(root, own):
            if isinstance(found, LeftOut):
                left_out.append(found)
            else:
                candidates.append(found)
    else:
        root, candidates = path.absolute().parent, [FileName(path.name)]
        own = OwnFiles()  # a single file that is named is taken, also if it holds earlier results
    documents = _check([Document(root, name) for name in sorted(candidates, key=as_text)], own, left_out)
    left_out.sort(key=lambda one: one.name)
    unreadable = [one for one in left_out if one.reason is Reason.UNREADABLE]
    if unreadable and not (skips_unreadable and documents):
        raise _unreadable(path, unreadable)
    result = DocumentSet(root, documents, left_out)
    if not documents:
        raise _nothing(path, result)
    return result


def source_key(document: Document, base: Path) -> str:
    """The source key of the document in the ledger: its resolved path, relative to `base` where it lies in `base`."""
    path = document.path.resolve()
    base = base.resolve()
    return as_text(path.relative_to(base) if path.is_relative_to(base) else path)


def _check(candidates: list[Document], own: OwnFiles, left_out: list[LeftOut]) -> list[Document]:
    """The candidates that can be sent. Adds the others to `left_out`."""
    usable: list[Document] = []
    for document in candidates:
        try:
            if not is_utf8(document.relative):
                raise _Unusable("its name is not UTF-8; rename it")
            raw = _read(document.path)
            if (words := own.describe_text(raw)) is not None:
                left_out.append(LeftOut(document.relative, Reason.OWN, words))
                continue
            text = _decode(raw)
        except _Unusable as exc:
            left_out.append(LeftOut(document.relative, Reason.UNREADABLE, str(exc)))
            continue
        if text.strip():
            usable.append(document)
        else:
            left_out.append(LeftOut(document.relative, Reason.EMPTY))
    return usable


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


def _unreadable(path: Path, unreadable: list[LeftOut]) -> UnreadableDocuments:
    problems = [f"{printable_name(one.name)}: {one.details}" for one in unreadable]
    error = input_error(as_text(path), problems)
    return UnreadableDocuments(str(error), error.problems)


def _nothing(path: Path, found: DocumentSet) -> InputError:
    empty, skipped = (found.count_left_out(one) for one in (Reason.EMPTY, Reason.OTHER_KIND))
    if empty:
        problem = f"{path} holds no documents: {empty:,} found, and all are empty"
    else:
        looked_for = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
        problem = f"{path} holds no documents (looked for {looked_for})"
        if skipped:
            problem += f"; files of other kinds: {skipped:,}"
        problem += "".join(
            f"; {reason}: {count:,}"
            for reason in (Reason.OUTSIDE, Reason.OWN)
            if (count := found.count_left_out(reason))
        )
    return InputError(problem)


def printable_name(name: str) -> str:
    """A file's name that any terminal can print."""
    return name.encode("utf-8", "backslashreplace").decode()
