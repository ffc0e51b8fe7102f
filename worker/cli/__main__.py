"""`python -m worker.cli`, and the `antrean` command of an installation."""

from __future__ import annotations

import gc
import sys


def start() -> None:
    """Runs the command line and ends the process."""
    # What is imported stays. Looking through it for garbage, while it loads and once more at the end, took a third of
    # a short command's time; `worker.cli.main` has the collector work again once the command is loaded.
    gc.disable()
    try:
        from worker.cli.main import main  # local: also a Ctrl-C while it is imported is one

        main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    start()
