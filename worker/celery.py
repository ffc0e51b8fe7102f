"""The Celery app: `celery -A worker worker|beat|flower` find it here. Its reasons are in docs/celery.md."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Exchange, Queue
from kombu.utils.objects import cached_property

from worker import channel
from worker.broker import broker_address
from worker.errors import AntreanError
from worker.hints import LONE_QUEUE, SHARED_QUEUES, UNACKED_KEY, Queues, queues_of
from worker.printable import printable
from worker.settings import load_settings
from worker.storage.engine import open_ledger
from worker.storage.identity import fetch_identity


def build_conf() -> dict[str, Any]:
    """Celery's settings for this process. Ends the process with a sentence if ours cannot be used."""
    try:
        settings = load_settings()
    except AntreanError as exc:
        raise SystemExit(f"antrean: {printable(str(exc))}") from None
    address = broker_address(settings)
    return {
        "broker_url": address,
        # kombu would take any certificate otherwise; ssl_ options of the URL win.
        "broker_use_ssl": {"ssl_cert_reqs": ssl.CERT_REQUIRED} if address.startswith("rediss:") else None,
        "task_queues": _declare(SHARED_QUEUES.names),
        "task_default_queue": LONE_QUEUE,
        "task_default_exchange": LONE_QUEUE,
        "task_default_routing_key": LONE_QUEUE,
        "task_create_missing_queues": False,  # a typo fails loudly
        "worker_pool": "threads",
        "worker_concurrency": settings.thread_count,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,  # reserves what the slots hold, hoards nothing
        "worker_enable_prefetch_count_reduction": False,  # the claim absorbs a double delivery
        "worker_consumer": "worker.consumer:Consumer",
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # never kill a paid call
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "task_acks_late": True,  # a message outlives kill -9
        "task_ignore_result": True,
        "task_send_sent_event": False,  # costs 40 % of the publish rate
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "task_publish_retry": False,
        "task_publish_retry_policy": {"max_retries": 3, "interval_max": 1},
        "beat_enable_remote_control": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # long outages are survived
        "broker_transport_options": {
            # Foreign messages in hand, leased (`worker.channel`). Under keys of our own: other apps on this broker know
            # nothing of leases, and may hold theirs for an hour.
            "visibility_timeout": settings.lease_s,
            "unacked_restore_interval": settings.beat_interval_s,
            "unacked_restore_throttle": 1,
            "unacked_key": UNACKED_KEY,
            "unacked_index_key": f"{UNACKED_KEY}_index",
            "unacked_mutex_key": f"{UNACKED_KEY}_mutex",
            "unacked_mutex_expire": max(1, round(settings.lease_s)),
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 5,
            "queue_order_strategy": "priority",
        },
    }


class AMQP(channel.AMQP):
    """Ours, with the queues of this process's ledger and endpoint, once somebody asks for queues.

    A worker says which they are. Celery's own tools (`purge`, `amqp`) ask the ledger, if there is one.
    """

    @cached_property
    def queues(self) -> Any:
        return self.Queues(_declare(_find_names()))

    @queues.setter  # type: ignore[no-redef]
    def queues(self, queues: Any) -> Any:
        return self.Queues(queues)


def serve_queues(queues: Queues) -> None:
    """Has the worker of this process read `queues` beside those that all workers read."""
    app.amqp.queues = _declare(_order(queues))


def _order(queues: Queues) -> tuple[str, ...]:
    # Lone before bulk; of each, after our own, what foreign producers and older versions publish.
    return queues.lone, SHARED_QUEUES.lone, queues.bulk, SHARED_QUEUES.bulk


def _find_names() -> tuple[str, ...]:
    try:
        settings = load_settings()
        if settings.database_url is None and not (settings.home / "antrean.db").is_file():
            return SHARED_QUEUES.names  # looking would make one
        ledger = open_ledger(settings, pool_size=1)
        try:
            with ledger.read() as connection:
                return _order(queues_of(fetch_identity(connection), settings.endpoint))
        finally:
            ledger.dispose()
    except AntreanError:
        return SHARED_QUEUES.names


def _declare(names: Iterable[str]) -> list[Queue]:
    direct = Exchange(LONE_QUEUE, type="direct")
    return [Queue(name, direct, routing_key=name) for name in names]


app = Celery("antrean", amqp="worker.celery:AMQP", events="worker.events:Events", include=["worker.tasks"])
app.add_defaults(build_conf)
# Flower itself reads ./flowerconfig.py, listens on 0.0.0.0 and asks for no password.
os.environ.setdefault("FLOWER_CONF", str(Path(__file__).with_name("flowerconfig.py")))
