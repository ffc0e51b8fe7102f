"""Celery's consumer without gossip and mingle: workers here meet in the ledger, not on the broker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer


class Consumer(CeleryConsumer):
    """The consumer that `celery -A worker worker` runs. Only command-line flags could do this otherwise.

    Mingle alone costs a second at every start.
    """

    def __init__(self, *args: Any, worker_options: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        options = {**(worker_options or {}), "without_mingle": True, "without_gossip": True}
        super().__init__(*args, worker_options=options, **kwargs)
