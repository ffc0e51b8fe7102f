"""The Celery app: `celery -A worker worker|beat|flower` find it here. Its reasons are in docs/celery.md.

A program that imports it, to call `complete_chat.delay`, may have a Celery app of its own. So this one never becomes
the current app there, reads nothing that was said to the other, and changes nothing of the process (docs/adr/0023).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from celery import Celery, signals
from celery.app.log import Logging as CeleryLogging
from celery.loaders.app import AppLoader
from kombu import Exchange, Queue
from kombu.utils.objects import cached_property

from worker.broker.client import broker_address
from worker.broker.hints import LONE_QUEUE, SHARED_QUEUES, Queues, queues_of
from worker.consume import connection
from worker.errors import AntreanError
from worker.logs.setup import configure_logs
from worker.settings import load_settings
from worker.startup import end_with
from worker.storage.engine import open_ledger
from worker.storage.identity import fetch_identity


def build_conf() -> dict[str, Any]:
    """Celery's settings for this process. Ends the process with a sentence if ours cannot be used."""
    try:
        settings = load_settings()
        address = broker_address(settings)
    except AntreanError as exc:
        end_with(exc)
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
        "worker_enable_prefetch_count_reduction": False,  # the claim absorbs a double delivery
        "worker_consumer": "worker.consume.consumer:Consumer",
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
        "beat_scheduler": "celery.beat:Scheduler",  # the other one runs the pickle that lies in the current folder
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # long outages are survived
        "broker_transport_options": {
            # kombu restores no message here: `worker.consume.notes` does, and other apps' are not ours to restore.
            "ack_emulation": False,
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 5,
        },
    }


class AMQP(connection.AMQP):
    """Ours, with the queues of this process's ledger and endpoint, once somebody asks for queues.

    A worker says which they are. Celery's own tools (`purge`, `amqp`) ask the ledger, if there is one.
    """

    @cached_property
    def queues(self) -> Any:
        return self.Queues(_declare(_find_names()))

    @queues.setter  # type: ignore[no-redef]
    def queues(self, queues: Any) -> Any:
        return self.Queues(queues)


class Loader(AppLoader):
    """Celery's own, but that nothing comes from the current folder: a `requests.py` there would run beside the key.

    Nor from CELERY_CONFIG_MODULE, which is another app's: what it says would win over all of ours.
    """

    when_worker_stops: Callable[[], None] = staticmethod(lambda: None)

    def on_worker_shutdown(self) -> None:
        """Celery stops a worker, for whatever reason, also without a signal: `celery control shutdown`, an error."""
        self.when_worker_stops()

    def read_configuration(self, env: str = "CELERY_CONFIG_MODULE") -> dict[str, Any]:
        return {}

    def import_from_cwd(self, module: str, imp: Any = None, package: str | None = None) -> Any:
        return (imp or self.import_module)(module, package=package)


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


class Logging(CeleryLogging):
    """Our logs for whatever runs this app. A receiver of Celery's signal would be one for all apps of a process."""

    def setup_logging_subsystem(self, *_: Any, **__: Any) -> bool:
        try:
            configure_logs(load_settings().log_level)
        except AntreanError as exc:
            end_with(exc)
        return True  # Celery sets up nothing more


class App(Celery):
    """Celery, but for CELERY_BROKER_URL and its like, which are another app's, and would win over our settings."""

    backend_cls = "worker.consume.results:LedgerOnly"

    def connection(self, hostname: str | None = None, *args: Any, **options: Any) -> Any:
        return super().connection(hostname or self.conf["broker_url"], *args, **options)

    def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
        return super().connection_for_read(url or self.conf["broker_url"], **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Any:
        return super().connection_for_write(url or self.conf["broker_url"], **options)


app = App(
    "antrean",
    set_as_current=False,
    amqp="worker.celery:AMQP",
    events="worker.consume.events:Events",
    log="worker.celery:Logging",
    loader="worker.celery:Loader",
    fixups=[],  # Django's belongs to the app of a Django project
    include=["worker.tasks"],
)
app.add_defaults(build_conf)
# Celery's command line tells each command by this that it runs our app, before the command begins.
app.user_options["preload"].add(click.Option(["--of-antrean"], default="yes", hidden=True))
app.user_options["worker"].add(
    click.Option(["--drain"], is_flag=True, help="End when nothing is left to do for the endpoint.")
)


@signals.user_preload_options.connect
def _point_flower_to_us(app: Any = None, **_: Any) -> None:
    # Flower itself reads ./flowerconfig.py, listens on 0.0.0.0 and asks for no password.
    if isinstance(app, App):
        os.environ.setdefault("FLOWER_CONF", str(Path(__file__).parent / "flower" / "config.py"))
