"""`--output` and `--force`, of the commands that write results."""

from __future__ import annotations

from worker.cli.console import note
from worker.operations.inputs import simulation_of
from worker.reports.outputs import Output
from worker.settings import Settings
from worker.storage.engine import Ledger

FORCE_HELP = "Overwrite a file that is not results, or results that cannot be written again; never an input."


def check_results(target: Output, ledger: Ledger, settings: Settings, batch_id: str | None) -> None:
    """Prints a remark on results that will be replaced. Raises InputError where they must be kept."""
    remark = target.check_results(ledger, batch_id, simulation=simulation_of(settings))
    if remark is not None:
        note(remark)
