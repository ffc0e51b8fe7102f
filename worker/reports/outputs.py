"""Checks what a command may overwrite: results that it can write again, and nothing else that cost money or work."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

import orjson

from worker.errors import InputError
from worker.reports.batchlines import LINE_START, check_output
from worker.reports.summary import format_count
from worker.storage.batches import fetch_batch
from worker.storage.engine import Ledger
from worker.storage.line_owners import LineOwner, fetch_owners, fetch_undashed

_PAGE = 500
_TEXT = rb'((?:[^"\\]|\\.)*)"'
_LINE = re.compile(
    rb'\{"id":"batch_req_'
    + _TEXT
    + rb',"custom_id":(?:null|"'
    + _TEXT
    + rb'),"response":(?:null|\{"status_code":(\d+))'
)
_HEX = re.compile(r"[0-9a-f]{32}")
LONE = "--lone"  # in place of a batch's id
_ANOTHER = "name another file with -o"
_OR_FORCE = f"{_ANOTHER}, or overwrite it with --force"
_Fingerprint = tuple[int, int, int, int]


def _no_simulation() -> Ledger | None:
    return None


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files that a command reads, and antrean's own files. The command must never overwrite one of them.

    `files`: paths with their descriptions for messages, also of files that do not exist yet. `documents`: those that a
    run has found; `folders`: the folders that hold them. A file in such a folder is an input if `is_document` is true
    for it and it holds no earlier results.
    """

    files: Sequence[tuple[Path, str]] = ()
    documents: Sequence[Path] = ()
    folders: Sequence[Path] = ()
    is_document: Callable[[Path], bool] = lambda _: True
    home: Path | None = None


@dataclass(slots=True)
class OwnerCounts:
    """The lines of a file of results, counted by their owners.

    `own`: of the batch that is to be written. `lost`: results that this ledger cannot write again, as their jobs were
    pruned or are in another ledger.
    """

    own: int = 0
    others: Counter[str] = field(default_factory=Counter)  # by the other batch that wants them
    unwanted: int = 0  # of jobs that no batch wants any more, as a document was edited or removed
    simulated: int = 0
    lost: int = 0
    is_foreign: bool = False  # a line is no output line of antrean


@dataclass(frozen=True, slots=True)
class _Line:
    id: str  # without dashes, as the line has it
    custom_id: str | None
    is_result: bool


class Output:
    """A file for results, and the rules for replacing what is in it.

    An input is never replaced. A file that holds anything but results, or results that cannot be written again, is
    replaced with `is_forced` only. Results of another batch are replaced if the user named the file (`is_named`), but
    not under a default name.
    """

    def __init__(self, path: Path, inputs: Inputs, *, is_named: bool = True, is_forced: bool = False) -> None:
        self.path = path
        self._inputs = inputs
        self._is_named = is_named
        self._is_forced = is_forced
        self._seen: _Fingerprint | None = None
        self._ledger: Ledger | None = None
        self._batch_id: str | None = None
        self._simulation: Callable[[], Ledger | None] = _no_simulation
        self._antrean = "antrean"

    def say_commands_as(self, antrean: str) -> None:
        """Sets how messages call the command: `antrean` alone might use another ledger."""
        self._antrean = antrean

    def check_file(self) -> None:
        """Raises InputError if results must not or cannot be written there. Does not ask the ledger."""
        check_output(self.path)
        facts = _stat(self.path)
        if facts is None:
            self._check_names()
            return
        if stat.S_ISBLK(facts.st_mode):
            raise InputError(f"{self.path} is a disk: {_ANOTHER}")
        if not stat.S_ISREG(facts.st_mode):
            self._check_files(facts)
            return
        self._check_files(facts)
        if not _begins_as_results(self.path):
            self._check_own(facts)
            if facts.st_size and not self._is_forced:
                raise InputError(f"{self.path} is not a file of results: {_OR_FORCE}")

    def check_results(
        self,
        ledger: Ledger,
        batch_id: str | None,
        *,
        simulation: Callable[[], Ledger | None] = _no_simulation,
    ) -> str | None:
        """A remark about the results that will be replaced, or None. Raises InputError if they must not be replaced.

        `batch_id`: the batch whose results are to be written; None if it is not made yet. `simulation`: opens the
        ledger of a simulation, if one is needed; its results cost nothing.
        """
        self._ledger, self._batch_id, self._simulation = ledger, batch_id, simulation
        self._seen = _fingerprint(self.path)
        if not self._is_named and not self._is_forced:
            self._check_growing(ledger)
        return self._judge()

    def belong_to(self, batch_id: str) -> None:
        """Sets the batch whose results are written, once it is made."""
        self._batch_id = batch_id

    def check_again(self) -> None:
        """Checks again right before the file is replaced, as it may have changed. Raises InputError."""
        if _fingerprint(self.path) == self._seen:
            return
        try:
            self.check_file()
            self._judge()
        except InputError as exc:
            raise InputError(
                f"while the results were made, this has come about: {exc}; "
                f"`{self._antrean} results {self._batch_id} -o FILE` writes them elsewhere"
            ) from None

    def may_grow_in(self, part: Path) -> bool:
        """Whether `part` may be emptied: it holds only lines of this batch, which can be written again."""
        beside = Output(part, self._inputs, is_named=False)
        try:
            beside.check_file()
            if self._ledger is not None:
                beside.check_results(self._ledger, self._batch_id)
        except InputError:
            return False
        return True

    def _check_files(self, facts: os.stat_result) -> None:
        for file, what in self._inputs.files:
            if _is_same(file, facts):
                raise InputError(f"{self.path} is {what}, which is never overwritten: {_ANOTHER}")

    def _check_names(self) -> None:
        """Refuses the name of an input that does not exist yet: results would be read as that input later."""
        real = os.path.realpath(self.path)
        for file, what in self._inputs.files:
            if os.path.realpath(file) == real:
                raise InputError(f"{self.path} is the name of {what}, which results never take: {_ANOTHER}")

    def _check_own(self, facts: os.stat_result) -> None:
        real = Path(os.path.realpath(self.path))
        if self._inputs.home is not None and real.is_relative_to(os.path.realpath(self._inputs.home)):
            raise InputError(f"{self.path} is one of antrean's own files: {_ANOTHER}")
        if not facts.st_size:
            return
        is_inside = self._inputs.is_document(real) and any(
            real.is_relative_to(os.path.realpath(folder)) for folder in self._inputs.folders
        )
        if is_inside or any(_is_same(document, facts) for document in self._inputs.documents):
            raise InputError(f"{self.path} is one of the documents, which are never overwritten: {_ANOTHER}")

    def _check_growing(self, ledger: Ledger) -> None:
        """Refuses a default name that another run is writing to. Otherwise this run would fail only at its end."""
        part = part_of(self.path)
        if not _is_being_written(part):
            return
        others = count_by_owner(ledger, part, self._batch_id).others
        if others:
            whose, _ = _describe(ledger, others)
            raise InputError(f"{self.path} is being written by a run of {whose}: {_ANOTHER}")

    def _judge(self) -> str | None:
        ledger = self._ledger
        if self._is_forced or ledger is None or not self.path.is_file():
            return None
        counts = count_by_owner(ledger, self.path, self._batch_id, simulation=self._simulation)
        if counts.is_foreign:
            raise InputError(f"{self.path} holds more than results: {_OR_FORCE}")
        if counts.lost:
            raise InputError(
                f"{self.path} holds {format_count(counts.lost, 'result')} that this ledger does not have (pruned, or "
                f"made by another ledger): {_OR_FORCE}"
            )
        if counts.others:
            whose, others = _describe(ledger, counts.others)
            if not self._is_named:
                raise InputError(f"{self.path} holds the results of {whose}: {_OR_FORCE}")
            return f"{self.path} held the results of {whose}: `{self._antrean} results {others}` writes them again"
        return f"{self.path} held the results of a simulation" if counts.simulated else None


def part_of(path: Path) -> Path:
    """The file to which a run writes its results until it ends, beside `path` or the target of the link `path`."""
    target = Path(os.path.realpath(path))
    return target.with_name(f"{target.name}.part")


def count_by_owner(
    ledger: Ledger,
    path: Path,
    batch_id: str | None,
    *,
    simulation: Callable[[], Ledger | None] = _no_simulation,
) -> OwnerCounts:
    """The lines of a file of results by their owners, for a command that writes those of `batch_id`. Memory stays flat.

    Raises InputError if the file cannot be read, and DatabaseAway.
    """
    counts = OwnerCounts()
    undashed: dict[str, str] | None = None
    try:
        with path.open("rb") as file:
            lines = _read_lines(file, counts)
            while page := list(islice(lines, _PAGE)):
                if undashed is None and batch_id and not all(_HEX.fullmatch(line.id) for line in page):
                    with ledger.read() as connection:
                        undashed = fetch_undashed(connection, batch_id)
                _count_page(ledger, page, batch_id, undashed or {}, simulation, counts)
    except OSError as exc:
        why = exc.strerror or type(exc).__name__
        raise InputError(f"{path} cannot be read ({why}), so it is not overwritten: {_OR_FORCE}") from None
    return counts


def _count_page(
    ledger: Ledger,
    page: Sequence[_Line],
    batch_id: str | None,
    undashed: dict[str, str],
    simulation: Callable[[], Ledger | None],
    counts: OwnerCounts,
) -> None:
    ids = [_job_id(line, undashed) for line in page]
    owners = _fetch(ledger, ids)
    unknown = [id_ for id_, line in zip(ids, page, strict=True) if line.is_result and id_ not in owners]
    simulated: dict[str, LineOwner] = {}
    if unknown and (simulated_in := simulation()) is not None:
        simulated = _fetch(simulated_in, unknown)
    for id_, line in zip(ids, page, strict=True):
        owner = owners.get(id_)
        if owner is None or (line.is_result and not owner.is_succeeded):
            if line.is_result and id_ in simulated:
                counts.simulated += 1
            elif line.is_result:
                counts.lost += 1
            continue
        wanting = [batch for batch, name in owner.names if _storable(name) == line.custom_id]
        if batch_id in wanting or (batch_id == LONE and owner.is_lone):
            counts.own += 1
        elif wanting:
            counts.others[wanting[0]] += 1
        elif owner.is_lone:
            counts.others[LONE] += 1
        else:
            counts.unwanted += 1


def _fetch(ledger: Ledger, ids: Sequence[str]) -> dict[str, LineOwner]:
    with ledger.read() as connection:
        return fetch_owners(connection, ids)


def _job_id(line: _Line, undashed: dict[str, str]) -> str:
    if _HEX.fullmatch(line.id):
        return str(UUID(line.id))
    return undashed.get(line.id, line.id)


def _read_lines(file: BinaryIO, counts: OwnerCounts) -> Iterator[_Line]:
    """The output lines of antrean. Other lines are noted in `counts`. A last line that was cut off is skipped."""
    for raw in file:
        found = _LINE.match(raw)
        if found is not None:
            id_, name, status = found.groups()
            yield _Line(
                id=str(orjson.loads(b'"' + id_ + b'"')),
                custom_id=None if name is None else str(orjson.loads(b'"' + name + b'"')),
                is_result=status is not None and status.startswith(b"2"),
            )
        elif raw.strip() and (raw.endswith(b"\n") or not raw.startswith(LINE_START)):
            counts.is_foreign = True
            return


def _describe(ledger: Ledger, others: Counter[str]) -> tuple[str, str]:
    """The owner of most of them, for a message; and the argument with which `antrean results` writes them again."""
    [(batch_id, _)] = others.most_common(1)
    if batch_id == LONE:
        return "jobs of no batch", LONE
    with ledger.read() as connection:
        batch = fetch_batch(connection, batch_id)
    label = "" if batch is None else f" ({batch.label})"
    more = f" and {format_count(len(others) - 1, 'other')}" if len(others) > 1 else ""
    return f"{batch_id}{label}{more}", batch_id


def _is_being_written(part: Path) -> bool:
    try:
        descriptor = os.open(part, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
    return False


def _begins_as_results(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(LINE_START)) == LINE_START
    except OSError:
        return False


def _is_same(file: Path, facts: os.stat_result) -> bool:
    other = _stat(file)
    return other is not None and os.path.samestat(other, facts)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _fingerprint(path: Path) -> _Fingerprint | None:
    facts = _stat(path)
    return None if facts is None else (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)


def _storable(name: str | None) -> str | None:
    """The name as it is in an output line."""
    return None if name is None else name.encode("utf-8", "replace").decode()
