"""The lines of a run in a real terminal, which breaks lines anew when it is resized."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, wait_until

_SCRIPT = """
import itertools, sys, time
from worker.cli.console import err
from worker.cli.progress import Display
from worker.operations.tracking import Progress
for number in range(int(sys.argv[1])):
    print("above", number, flush=True)
display = Display()
with display.shown():
    for look in itertools.count():
        progress = Progress(total=1_500_000, succeeded=1_204_311, in_flight=look, trouble="word " * 30)
        display.update(progress)
        time.sleep(0.05)
"""


@pytest.mark.default_cases(1)
@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
@pytest.mark.parametrize(
    ("above", "widths"),
    # On a screen that is nearly empty tmux keeps the cursor's row, and moves what is too much out of reach.
    [(2, (120, 60, 120, 60, 61, 200, 60)), (30, (60, 40, 60))],
    ids=["on an empty screen", "on a full screen"],
)
def test_a_resize_leaves_no_rest_and_takes_nothing_else_away(
    above: int, widths: tuple[int, ...], tmp_path: Path
) -> None:
    (tmp_path / "draw.py").write_text(_SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", "TERM": "xterm-256color"}
    env.pop("COLUMNS", None)
    env.pop("TMUX", None)

    def tmux(*arguments: str) -> str:
        command = ["tmux", "-S", str(tmp_path / "s"), "-f", os.devnull, *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=20).stdout

    def seen() -> list[str]:
        return [line for line in tmux("capture-pane", "-p", "-J", "-S", "-50").splitlines() if line.strip()]

    def look() -> int | None:
        """The number of the look that is on the screen, once it is there whole and with nothing beside it."""
        shown = [line.strip() for line in seen()]
        if shown[:above] != [f"above {number}" for number in range(above)] or len(shown) < above + 3:
            return None
        bar, now, *waiting = shown[above:]
        number = re.fullmatch(r"(\d+) in flight · 0 tok/s", now)
        is_whole = bar.startswith("80% ") and " ".join(waiting).split() == ["waiting:", *["word"] * 30]
        return int(number[1]) if number and is_whole else None

    script = str(tmp_path / "draw.py")
    tmux("new-session", "-d", "-x", "120", "-y", "20", sys.executable, script, str(above))
    try:
        tmux("set", "-g", "window-size", "manual")
        for width in widths:
            tmux("resize-window", "-x", str(width))
            before = look() or 0
            wait_until(
                lambda before=before: (look() or 0) > before + 20,
                within_s=10,
                what=f"{width} columns without a rest",
            )
    finally:
        tmux("kill-server")
