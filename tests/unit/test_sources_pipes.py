"""Input that can be read only once: copied whole, called by a plain name, and never waited for in vain."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from worker.errors import InputError
from worker.sources import pipes
from worker.sources.pipes import as_file, name_input, read_input
from worker.sources.prompt import Prompt

TEXT = b"one\n" * 100_000  # more than a pipe holds


def feed(path: Path, *chunks: bytes) -> threading.Thread:
    """Writes into a named pipe from another thread."""

    def write() -> None:
        with path.open("wb") as pipe:
            for chunk in chunks:
                pipe.write(chunk)
                pipe.flush()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "in.fifo")
    return tmp_path / "in.fifo"


def test_a_named_pipe_is_a_file_that_can_be_read_twice_and_is_gone_afterwards(fifo: Path) -> None:
    feed(fifo, TEXT, b"end")
    with as_file(fifo) as path:
        assert path.read_bytes() == path.read_bytes() == TEXT + b"end"
    assert not path.exists()


def test_a_pipe_is_read_whole_whoever_opens_it_first(fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "_LOOK_MS", 1)
    started = threading.Timer(0.1, lambda: feed(fifo, TEXT))
    started.start()
    assert read_input(fifo) == TEXT
    started.join()


def test_a_pipe_that_nobody_opens_to_write_is_a_sentence(fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "_WRITER_WITHIN_S", 0.05)
    monkeypatch.setattr(pipes, "_LOOK_MS", 10)
    with pytest.raises(InputError, match="nobody has opened it to write"), as_file(fifo):
        pass


def test_a_writer_that_is_silent_for_long_is_waited_for(fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "_WRITER_WITHIN_S", 0.0)
    monkeypatch.setattr(pipes, "_LOOK_MS", 10)
    writer = os.open(fifo, os.O_RDWR)  # so that no opening waits
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(read_input(fifo)), daemon=True)
    reader.start()
    reader.join(0.2)
    assert reader.is_alive()
    os.write(writer, b"at last")
    os.close(writer)
    reader.join(5)
    assert read == [b"at last"]


def test_an_open_descriptor_is_read_like_a_file() -> None:
    reader, writer = os.pipe()
    feeding = threading.Thread(target=lambda: (os.write(writer, b"ab"), os.close(writer)))
    feeding.start()
    with as_file(Path(f"/dev/fd/{reader}")) as path:
        assert path.read_bytes() == b"ab"
    feeding.join(5)
    os.close(reader)


def test_a_file_is_read_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"x")
    with as_file(tmp_path / "a.jsonl") as path:
        assert path == tmp_path / "a.jsonl"
    assert path.exists()


def test_what_has_no_end_or_cannot_be_opened_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device"):
        read_input(Path("/dev/zero"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(InputError, match="cannot be read"):
            read_input(tmp_path / "s")


def test_inputs_have_plain_names(fifo: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    reader, writer = os.pipe()
    for path in ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"):
        assert name_input(Path(path)) == "standard input"
    assert name_input(fifo) == name_input(Path(f"/dev/fd/{reader}")) == "a pipe"
    assert name_input(tmp_path / "a.jsonl") == "a.jsonl"
    with (tmp_path / "a.jsonl").open() as file:
        assert name_input(Path(f"/dev/fd/{file.fileno()}")) == "a.jsonl"
        (tmp_path / "a.jsonl").unlink()
        assert name_input(Path(f"/dev/fd/{file.fileno()}")) == "an open file"
    os.close(reader)
    os.close(writer)


def test_a_prompt_may_come_through_a_pipe(fifo: Path) -> None:
    feed(fifo, b"Read {{ text }}")
    prompt = Prompt.load(fifo)
    assert (prompt.label, prompt.source) == ("a pipe", "Read {{ text }}")


def test_standard_input_that_does_not_block_is_read_to_its_end() -> None:
    """A parent such as Node leaves its pipes so: what is not there yet is no end."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    code = (
        "import sys; from pathlib import Path; from worker.sources.pipes import read_input; "
        "print('ready', flush=True); print(len(read_input(Path('-'))))"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=reader, stdout=subprocess.PIPE, cwd=root
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.write(writer, b"x" * 1000)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        os.write(writer, b"y" * 1000)
        os.close(writer)
        assert process.stdout.read() == b"2000\n"
    os.close(reader)
