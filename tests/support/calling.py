"""Many real calls at once, and what came of each."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import requests

from api_client.simulator import SimulatorThread


class Told(NamedTuple):
    """One call: its status (0: no answer), its headers and JSON, and how long it took."""

    status: int
    headers: Any
    body: Any
    took_s: float


def ask(simulator: SimulatorThread, *, key: str = "sk-a", text: str = "Hello!", **fields: Any) -> Told:
    """One call of a chat completion."""
    body = {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": text}]} | fields
    began = time.monotonic()
    try:
        answer = requests.post(
            simulator.url + "/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {key}"},
            timeout=20,
        )
    except requests.ConnectionError:
        return Told(0, {}, None, time.monotonic() - began)
    is_json = answer.headers["content-type"] == "application/json"
    return Told(
        answer.status_code, answer.headers, answer.json() if is_json else None, time.monotonic() - began
    )


def ask_at_once(simulator: SimulatorThread, count: int, **options: Any) -> Sequence[Told]:
    """So many calls, each in a thread of its own, in the order of their ends."""
    told: list[Told] = []
    threads = [threading.Thread(target=lambda: told.append(ask(simulator, **options))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told
