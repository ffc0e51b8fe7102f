"""Messages of other apps, which workers set aside, are put back: to the queue where they lay, or to another one.

The order of the messages stays. Jobs and hints of this ledger are not touched.
"""

from __future__ import annotations

from worker.broker.client import broker_address, open_client
from worker.broker.hints import SHARED_QUEUES, list_keys, queues_of
from worker.broker.set_aside import count_aside, give_back
from worker.errors import InputError
from worker.files.home import broker_socket
from worker.operations.errors import UnusableQueueName, WouldBeSetAside
from worker.reports.summary import format_count
from worker.settings import Settings
from worker.storage.engine import Ledger
from worker.storage.identity import fetch_identity
from worker.storage.workers import fetch_workers


def give_messages_back(ledger: Ledger, settings: Settings, queue: str | None) -> int:
    """How many messages were put back, where they lay or on `queue`.

    Before anything is moved, raises UnusableQueueName, InputError where the embedded broker does not run, and
    WouldBeSetAside where workers of this ledger live that read the queue. Raises BrokerAway; what has gone back by then
    stays there.
    """
    read_here = _read_queues(ledger, settings)
    if queue is not None and (not queue.isprintable() or not queue or len(queue) > 200):
        raise UnusableQueueName("the name of a queue has 1 to 200 printable characters")
    if queue is None or queue in read_here:
        with ledger.read() as connection:
            living = len(fetch_workers(connection))
        if living:
            raise WouldBeSetAside(
                f"{format_count(living, 'worker')} of this ledger would set them aside again: give antrean a broker "
                "of its own and end the workers here, or name the other app's own queue"
            )
    if settings.is_broker_embedded and not broker_socket(settings.home).exists():
        raise InputError(
            "the embedded broker does not run, and no other app reaches it: set ANTREAN_BROKER_URL"
        )
    client = open_client(broker_address(settings))
    moved = 0
    try:
        for name in read_here:
            for key in count_aside(client, [name]):
                moved += give_back(client, key, key if queue is None else _same_list(key, name, queue))
    finally:
        client.close()
    return moved


def _read_queues(ledger: Ledger, settings: Settings) -> tuple[str, ...]:
    with ledger.read() as connection:
        own = queues_of(fetch_identity(connection), settings.endpoint)
    return (*SHARED_QUEUES.names, *own.names)


def _same_list(key: str, queue: str, other: str) -> str:
    """The list of the same priority of the `other` queue."""
    return list_keys(other)[list_keys(queue).index(key)]
