"""The inputs of a run or a batch, and antrean's own files beside them: results are never written over one of these.

Nothing here changes a file. Where a batch's inputs are is in its details, which `name_inputs` makes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from worker.files.names import as_file_name, as_text, is_utf8
from worker.reports.outputs import Inputs
from worker.settings import SIMULATION, Settings
from worker.sources.folder import SUFFIXES
from worker.storage.engine import Ledger
from worker.storage.migrating import prepare_ledger

_SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal")  # the database, and what SQLite lays beside it


def inputs_of_run(
    settings: Settings,
    source: Path,
    output: Path,
    *,
    prompt: Path | None = None,
    documents: Sequence[Path] = (),
) -> Inputs:
    """What a run that writes `output` reads: documents and a prompt, or a file of requests."""
    is_folder = source.is_dir()
    name = "the file of requests" if prompt is None else "the document"
    return Inputs(
        files=[
            *([] if prompt is None else [(prompt, "the prompt")]),
            *_own_files(settings),
            *([] if is_folder else [(source, name)]),
        ],
        # They are compared only where there is a file that one of them could be.
        documents=documents if is_folder and output.exists() else [],
        folders=[source] if is_folder else [],
        is_document=_is_document,
        home=settings.home,
    )


def inputs_of_batch(settings: Settings, details: Mapping[str, Any]) -> Inputs:
    """What a batch was made from, as `name_inputs` wrote it down."""
    named = {name: Path(as_file_name(details[name])) for name in ("source", "prompt") if name in details}
    folders = [path for path in [named.get("source")] if path is not None and path.is_dir()]
    files = [
        (path, f"an input of this batch ({name})") for name, path in named.items() if path not in folders
    ]
    return Inputs(
        files=[*files, *_own_files(settings)],
        folders=folders,
        is_document=_is_document,
        home=settings.home,
    )


def name_inputs(*, source: Path, prompt: Path | None = None) -> dict[str, str]:
    """Where a batch's inputs are, for its details: only what lasts, and a file or a folder."""
    named = {"source": source, "prompt": prompt}
    return {
        name: as_text(path.resolve())
        for name, path in named.items()
        if path is not None and (path.is_file() or path.is_dir()) and is_utf8(as_text(path.resolve()))
    }


def simulation_of(settings: Settings) -> Callable[[], Ledger | None]:
    """Opens the ledger of this home's simulated runs, whose results cost nothing; None where there is none."""

    @cache
    def opened() -> Ledger | None:
        if settings.endpoint == SIMULATION or not (settings.home / SIMULATION / "antrean.db").is_file():
            return None
        return prepare_ledger(settings.for_simulation("http://127.0.0.1", SIMULATION))

    return opened


def _own_files(settings: Settings) -> list[tuple[Path, str]]:
    ledger = settings.ledger_address
    return [
        *((Path(name), "a file of settings") for name in (".env", "antrean.toml")),
        *((path, "a file of a password or a key") for path in settings.secret_files),
        *((path, "the file of prices") for path in (settings.prices_file,) if path is not None),
        *(
            (Path(f"{ledger}{suffix}"), "the ledger")
            for suffix in _SQLITE_SUFFIXES
            if isinstance(ledger, Path)
        ),
    ]


def _is_document(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES
