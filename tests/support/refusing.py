"""A real Valkey that takes connections and refuses requests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KINDS = ("MISCONF", "READONLY", "OOM")


@contextmanager
def refusing(valkey: Any, kind: str) -> Iterator[None]:
    """`valkey` is a client of the server, which refuses writes meanwhile: its file fails, it is a replica, it is full."""
    begin = {"MISCONF": _lose_the_file, "READONLY": _become_replica, "OOM": _be_full}[kind]
    end = begin(valkey)
    try:
        yield
    finally:
        end()


def _lose_the_file(valkey: Any) -> Any:
    """A folder has the name of the file that Valkey saves to."""
    in_the_way = Path(valkey.config_get("dir")["dir"]) / valkey.config_get("dbfilename")["dbfilename"]
    _wait_for_save(valkey)
    in_the_way.unlink(missing_ok=True)
    in_the_way.mkdir()

    def end() -> None:
        valkey.config_set("save", "")
        _wait_for_save(valkey)
        in_the_way.rmdir()

    valkey.bgsave()
    valkey.config_set("save", "900 1")
    _wait_for_save(valkey)
    assert valkey.info("persistence")["rdb_last_bgsave_status"] == "err"
    return end


def _wait_for_save(valkey: Any) -> None:
    end_s = time.monotonic() + 10
    while valkey.info("persistence")["rdb_bgsave_in_progress"]:
        assert time.monotonic() < end_s, "the save ends"
        time.sleep(0.02)


def _become_replica(valkey: Any) -> Any:
    valkey.replicaof("127.0.0.1", "1")  # where nobody listens
    return lambda: valkey.replicaof("NO", "ONE")


def _be_full(valkey: Any) -> Any:
    valkey.config_set("maxmemory", 1)
    return lambda: valkey.config_set("maxmemory", 0)
