"""The simulator as a process: its first line, its exit codes and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).parents[2]
REQUEST = {"model": "m-1", "messages": [{"role": "user", "content": "Hello!"}]}


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "api_client.simulator", *options]


def environment(**variables: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)} | variables


@contextmanager
def simulating(*options: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        command(*options), env=environment(**variables), stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            announced = process.stdout.readline()
            assert announced.startswith("listening on http://127.0.0.1:")
            yield process, announced.removeprefix("listening on ").strip()
        finally:
            process.kill()


def failing(*options: str, **variables: str) -> tuple[int, str]:
    ended = subprocess.run(
        command(*options),
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.stdout == ""
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("wanted", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_at_once_also_while_calls_hang(wanted: signal.Signals) -> None:
    with simulating("--rate-hang", "1", "--model", "m-1") as (process, url):
        with pytest.raises(requests.ReadTimeout):
            requests.post(url + "/v1/chat/completions", json=REQUEST, timeout=0.2)
        address = url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as hanging:
            body = b'{"model": "m-1", "messages": [{"role": "user", "content": "Hi"}]}'
            hanging.sendall(
                b"POST /chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            while requests.get(url + "/simulator/stats", timeout=5).json()["faults"].get("hang") != 2:
                pass
            process.send_signal(wanted)
            assert process.wait(timeout=20) == 0, "a call hangs for longer"


def test_the_key_comes_from_the_environment_and_not_from_the_arguments() -> None:
    with simulating("--model", "m-1", "--model", "m-2", ANTREAN_SIMULATOR_KEY="sk-secret") as (_, url):
        listed = requests.get(url + "/v1/models", headers={"api-key": "sk-secret"}, timeout=5)
        assert listed.json() == {"data": [{"id": "m-1"}, {"id": "m-2"}]}
        assert requests.get(url + "/v1/models", timeout=5).status_code == 401
    with simulating("--key-env", "MY_KEY", MY_KEY="sk-mine") as (_, url):
        assert requests.get(url + "/v1/models", headers={"api-key": "sk-mine"}, timeout=5).status_code == 200


def test_a_port_in_use_is_one_sentence_and_exit_code_4() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert failing("--port", str(port)) == (
            4,
            f"port {port} on 127.0.0.1 is in use: choose another with --port (0 for any free one)\n",
        )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--fault-rate", "1.5"], "fault_rate must be from 0 to 1, not 1.5\n"),
        (["--latency", "slow"], "argument --latency: invalid float value: 'slow'\n"),
        (
            ["--key-env", "NOT_SET_ANYWHERE"],
            "--key-env: the environment variable NOT_SET_ANYWHERE is not set\n",
        ),
        (["--nonsense"], "unrecognized arguments: --nonsense\n"),
    ],
)
def test_a_bad_option_is_one_sentence_and_exit_code_2(options: list[str], sentence: str) -> None:
    assert failing(*options) == (2, sentence)


def test_the_call_log_outlives_a_killed_simulator(tmp_path: Path) -> None:
    log = tmp_path / "calls.jsonl"
    with simulating("--latency", "0", "--model", "m-1", "--log-calls", str(log)) as (process, url):
        headers = {"X-Antrean-Job": "a"}
        assert requests.post(url + "/v1/chat/completions", json=REQUEST, headers=headers, timeout=5).ok
        deadline = time.monotonic() + 5
        while not log.read_bytes() and time.monotonic() < deadline:
            pass
        process.kill()
        process.wait()
    assert '"job":"a"' in log.read_text()
