"""Shell completion, as a shell asks for it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.acceptance.test_commands_more import submit
from tests.support.processes import Finished, Shop, environment

pytestmark = pytest.mark.real_interpreter


def complete(shop: Shop, line: str, word: int, **settings: object) -> Finished:
    """What bash is told to complete `line` with at its word number `word`."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "worker.cli"],
        cwd=shop.folder,
        env=environment({**shop.settings, **settings})
        | {"_ANTREAN_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(word)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    return Finished(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.full
def test_the_shell_completes_commands_options_and_batches(shop: Shop) -> None:
    assert complete(shop, "antrean st", 1).out == "status\n"
    assert complete(shop, "antrean usage --by ", 3).out.split() == ["model", "day", "batch", "custom"]
    assert "--content" in complete(shop, "antrean show --c", 2).out
    first, second = submit(shop, 1, "a.jsonl"), submit(shop, 1, "b.jsonl")
    for command in ("status", "results", "retry", "cancel"):
        assert complete(shop, f"antrean {command} batch_", 2).out.split() == [second, first]
    assert complete(shop, f"antrean usage --batch {first}", 3).out == f"{first}\n"


def test_a_completion_is_silent_where_there_is_nothing_to_ask(shop: Shop) -> None:
    empty = complete(shop, "antrean status batch_", 2)
    assert (empty.code, empty.out.strip(), empty.err) == (0, "", "")
    assert not (shop.folder / ".antrean").exists()
    for wrong in ({"database_url": "nonsense"}, {"concurrency": "many"}, {"home": "/proc/none"}):
        done = complete(shop, "antrean status batch_", 2, **wrong)
        assert (done.code, done.out.strip(), done.err) == (0, "", "")


@pytest.fixture
def deaf() -> Iterator[int]:
    """The port of a server that takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_completion_does_not_wait_for_a_database_that_hangs(shop: Shop, deaf: int) -> None:
    plain = time.monotonic()
    complete(shop, "antrean st", 1)
    hanging = time.monotonic()
    done = complete(shop, "antrean status b", 2, database_url=f"postgresql://x@127.0.0.1:{deaf}/x")
    took_s, plain_s = time.monotonic() - hanging, hanging - plain
    assert (done.code, done.out.strip(), done.err) == (0, "", "")
    assert took_s < plain_s + 4


def test_the_completion_script_is_for_the_launchers_name(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    # Which shell it is would be read off the parent processes, and a test has whichever started it.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    script = shop.antrean("--show-completion", "bash").out
    assert script.rstrip().endswith("complete -o default -F _antrean_completion antrean")
    home = shop.folder / "person"
    home.mkdir()
    env = environment(shop.settings) | {"HOME": str(home)}
    subprocess.run(
        [sys.executable, "-P", "-m", "worker.cli", "--install-completion", "bash"],
        env=env,
        cwd=shop.folder,
        check=True,
        timeout=60,
        capture_output=True,
    )
    assert (home / ".bash_completions" / "antrean.sh").read_text().strip() == script.strip()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_through_the_launcher(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    launcher = shop.folder / "antrean"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m worker.cli "$@"\n')
    launcher.chmod(0o755)
    (shop.folder / "completion.sh").write_text(shop.antrean("--show-completion", "bash").out)
    line = ". ./completion.sh; COMP_WORDS=(antrean resum); COMP_CWORD=1; _antrean_completion ./antrean; echo ${COMPREPLY[@]}"
    done = subprocess.run(
        ["bash", "--norc", "-c", line],
        cwd=shop.folder,
        env=environment(shop.settings),
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.decode().split() == ["resume"]
