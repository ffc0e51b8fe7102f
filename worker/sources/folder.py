"""Finds the files of a folder that may be documents, and those that are left out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from worker.files.names import FileName, as_text
from worker.sources.left_out import LeftOut, Reason
from worker.sources.own_files import OwnFiles
from worker.sources.problems import why

# The suffixes of documents in a folder. A single file that is named may have any suffix.
SUFFIXES = (
    *(".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex", ".html", ".htm", ".xml"),
    *(".csv", ".tsv", ".json", ".yaml", ".yml", ".log", ".eml", ".srt", ".vtt"),
)


def walk(root: Path, own: OwnFiles) -> Iterator[FileName | LeftOut]:
    """Relative paths, with slashes, of the files below `root` that may be documents, and what is left out.

    In no order. Links are followed if their target lies in `root`. Each folder is walked once, under its own name if
    that lies in `root`. Hidden folders and antrean's own are not entered.
    """
    return _Walk(root, own).steps()


class _Walk:
    def __init__(self, root: Path, own: OwnFiles) -> None:
        self._root = root
        self._own = own
        self._real_root = Path(os.path.realpath(root))
        self._seen: set[tuple[int, int]] = set()
        self._folders = [FileName("")]
        self._linked: list[FileName] = []  # walked last: most of them are found under their own names first

    def steps(self) -> Iterator[FileName | LeftOut]:
        while self._folders or self._linked:
            folder = (self._folders or self._linked).pop()
            try:
                facts = (self._root / folder).stat()
                if (facts.st_dev, facts.st_ino) in self._seen:
                    yield LeftOut(f"{as_text(folder)}/", Reason.AGAIN)
                    continue
                self._seen.add((facts.st_dev, facts.st_ino))
                with os.scandir(self._root / folder) as scan:
                    entries = sorted(scan, key=lambda entry: entry.name, reverse=True)
            except OSError as exc:
                details = f"the folder cannot be read ({why(exc)})"
                yield LeftOut(
                    f"{as_text(folder)}/" if folder else as_text(self._root), Reason.UNREADABLE, details
                )
                continue
            for entry in entries:
                way = FileName(f"{folder}/{entry.name}" if folder else entry.name)
                try:
                    found = self._look_at(entry, way)
                except OSError as exc:
                    found = LeftOut(as_text(way), Reason.UNREADABLE, f"cannot be read ({why(exc)})")
                if found is not None:
                    yield found

    def _look_at(self, entry: os.DirEntry[str], way: FileName) -> FileName | LeftOut | None:
        """The entry as a document or as left out; None for a folder, which is walked later."""
        path, relative = Path(entry.path), as_text(way)
        is_link, words = entry.is_symlink(), self._own.describe(path)
        if is_link:
            real = Path(os.path.realpath(path))
            if not real.is_relative_to(self._real_root):
                return LeftOut(relative, Reason.OUTSIDE)
            within = real.parents[: max(0, len(real.parts) - len(self._real_root.parts) - 1)]
            words = words or next(filter(None, map(self._own.describe, within)), None)
        # A dangling link is reported as a problem if its name is that of a document. A pipe is never opened here.
        is_there = not is_link or path.exists()
        is_folder = is_there and entry.is_dir()
        shown = f"{relative}/" if is_folder else relative
        if words is not None:
            return LeftOut(shown, Reason.OWN, words)
        if entry.name.startswith("."):
            return LeftOut(shown, Reason.HIDDEN)
        if is_folder:
            (self._linked if is_link else self._folders).append(way)
            return None
        is_file = not is_there or entry.is_file()
        if is_file and path.suffix.lower() in SUFFIXES:
            return way
        return LeftOut(relative, Reason.OTHER_KIND)
