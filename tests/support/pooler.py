"""A real PgBouncer in front of the embedded PostgreSQL, on unix sockets alone."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from tests.support.folders import make_short_folder

_CONF = """
[databases]
* = host={server} user=postgres
[pgbouncer]
listen_addr =
unix_socket_dir = {folder}
listen_port = 6432
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
server_lifetime = 3600
logfile = {folder}/log
"""


class Pooler:
    """PgBouncer in one mode, with `size` connections to the server for each database."""

    def __init__(self, server_url: str, *, mode: str, size: int = 4, more: str = "") -> None:
        program = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if program is None:
            pytest.skip("PgBouncer is not installed (apt-get install pgbouncer)")
        server = parse_qs(urlsplit(server_url).query)["host"][0]
        self._folder = make_short_folder()
        conf = self._folder / "pgbouncer.ini"
        conf.write_text(_CONF.format(server=server, folder=self._folder, mode=mode, size=size) + more)
        arguments = [program, "--quiet", str(conf)]
        owner = Path(server).stat()
        if os.geteuid() == 0:  # it does not run as root, and who owns the server's folder reaches its socket
            os.chown(self._folder, owner.st_uid, owner.st_gid)
            arguments[1:1] = ["-u", pwd.getpwuid(owner.st_uid).pw_name]
        self._process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        database = urlsplit(server_url).path
        self.url = f"postgresql://postgres@{database}?host={self._folder}&port=6432"
        try:
            self._wait()
        except psycopg.Error:
            self.close()
            raise

    def _wait(self) -> None:
        end_s = time.monotonic() + 10
        while True:
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > end_s:
                    raise
                time.sleep(0.02)

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)
