"""A broker and a database of a test's own, which may be stopped, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Any

import psycopg
import redis

from tests.support.postgres import postgres_wheel
from tests.support.processes import wait_until
from worker.stack.valkey import find_binary


class ValkeyProcess:
    """A real Valkey on a unix socket that may be killed and started again, with or without what it held."""

    def __init__(self, folder: Path) -> None:
        self.socket = str(folder / "v.sock")
        self._folder = folder / "valkey"
        self._folder.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis+socket://{self.socket}?virtual_host=0"

    def start(self, *, keeps: bool = True) -> None:
        """Returns when it answers. Without `keeps` it has forgotten what it held, and keeps nothing."""
        appends = "yes" if keeps else "no"
        self._process = subprocess.Popen(
            [
                find_binary(),
                "--port",
                "0",
                "--unixsocket",
                self.socket,
                "--save",
                "",
                "--appendonly",
                appends,
            ],
            cwd=self._folder,
            env={"LC_ALL": "C"},
            stdout=subprocess.DEVNULL,
        )
        wait_until(self._answers, within_s=10, what="Valkey answers")

    def client(self) -> Any:
        """A client; every wait of it ends within five seconds."""
        return redis.Redis(unix_socket_path=self.socket, socket_timeout=5)

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(20)

    def signal(self, number: int) -> None:
        """Sends it a signal (SIGSTOP, SIGCONT)."""
        assert self._process is not None
        self._process.send_signal(number)

    def _answers(self) -> bool:
        try:
            with redis.Redis(unix_socket_path=self.socket, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


class PostgresProcess:
    """A real PostgreSQL of the arena's own, which may be stopped, killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._server = postgres_wheel().get_server(folder / "pg", cleanup_mode="stop")
        self.address = self._server.get_uri()
        self.socket = next(folder.rglob(".s.PGSQL.*[0-9]"))

    def make_database(self, folder: Path | None = None) -> str:
        """The address of a new database; through the socket in `folder` where one is given (a proxy's)."""
        name = f"p{uuid.uuid4().hex[:12]}"
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return f"postgresql+psycopg://postgres:@/{name}?host={folder or self.socket.parent}"

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.address, autocommit=True)

    def stop(self) -> None:
        """A fast shutdown: sessions are ended."""
        self._server.stop()

    def kill(self) -> None:
        """An immediate shutdown, as after a crash."""
        pid = self._server.get_pid()
        os.kill(pid, signal.SIGQUIT)
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), within_s=10, what="PostgreSQL is gone")

    def start(self) -> None:
        self._server.start()

    def close(self) -> None:
        self._server.cleanup()
