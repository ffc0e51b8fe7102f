"""Whether this host's worker beats, or a service at an address answers: for the health checks of containers."""

from __future__ import annotations

import http.client
import socket
import time
import urllib.error
import urllib.request

from worker.broker.client import broker_address, check_broker, open_client
from worker.errors import Unreachable
from worker.settings import Settings
from worker.storage.engine import open_ledger
from worker.storage.workers import fetch_workers

_TIMEOUT_S = 5.0


def check_worker(settings: Settings) -> str:
    """A sentence about the worker of this host. Raises Unreachable if none beats, or the broker is away.

    The beat's time was written by this host's clock, so it may be compared with it. In a container the host
    is the container, and so the worker is its own.
    """
    ledger = open_ledger(settings, pool_size=1)
    try:
        with ledger.read() as connection:
            here = [one for one in fetch_workers(connection) if one.hostname == socket.gethostname()]
    finally:
        ledger.dispose()
    if not here:
        raise Unreachable(f"no worker of {socket.gethostname()} is in the ledger")
    latest = max(here, key=lambda one: one.beat_at_ms)
    age_s = time.time() - latest.beat_at_ms / 1000
    if age_s > settings.lease_s:
        raise Unreachable(f"worker {latest.pid} has not beaten for {age_s:.0f} s")
    broker = check_broker(open_client(broker_address(settings)))
    return f"worker {latest.pid} beat {max(0.0, age_s):.0f} s ago with {latest.running} in flight; {broker} answers"


def check_address(url: str) -> str:
    """A sentence about an HTTP service. Raises Unreachable unless it answers 2xx or 3xx within seconds."""
    if not url.startswith(("http://", "https://")):
        raise Unreachable(f"{url} is no http:// or https:// address")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            return f"{url} answers {answer.status}"
    except urllib.error.HTTPError as exc:
        exc.close()
        raise Unreachable(f"{url} answers {exc.code}") from None
    except (OSError, http.client.HTTPException) as exc:
        why = getattr(exc, "reason", None) or str(exc) or type(exc).__name__
        raise Unreachable(f"{url} does not answer: {why}") from None
    except ValueError:
        raise Unreachable(f"{url} is no address: a host is a name or in [ ], a port a number") from None
