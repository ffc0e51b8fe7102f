"""The broker's address, clients for it, and the key that shows whether the broker has forgotten its content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.broker.hints import SHARED_QUEUES, Queues, list_keys, read_hinted_job
from worker.errors import BrokerAway, SettingsError
from worker.files.home import broker_url, check_runtime_folder
from worker.settings import Settings

_TIMEOUT_S = 5.0


def broker_address(settings: Settings) -> str:
    """The broker's URL as kombu reads it: the configured one, or the socket of the embedded broker.

    Raises AntreanError if that socket's folder is another user's.
    """
    if settings.broker_url is not None:
        return settings.broker_url.get_secret_value()
    check_runtime_folder(settings.home)
    return broker_url(settings.home)


def open_client(address: str, *, tries_again: bool = True) -> redis.Redis:
    """A client for the broker at `address`. It connects with its first command. Each wait ends within seconds.

    `tries_again`: a command is sent once more if its connection broke. That is wrong for a command that pops.
    Raises SettingsError for an option in the address that redis-py does not know.
    """
    # redis-py itself tries ten times with growing waits: a minute in which a slot would stand still.
    retry = Retry(NoBackoff(), 1 if tries_again else 0)
    try:
        client = _open(address, retry)
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # reads the options, and connects to nobody
    except (TypeError, ValueError, redis.RedisError) as exc:
        option = re.search(r"argument '(\w+)'", str(exc))  # nothing else of the text: it may quote a password
        words = (
            f"an option that no broker client knows: {option[1]}" if option else "an option of a wrong value"
        )
        raise SettingsError([f"ANTREAN_BROKER_URL: has {words}"]) from None
    return client


def _open(address: str, retry: Retry) -> redis.Redis:
    parts = urlsplit(address)
    if parts.scheme == "redis+socket":
        database = parse_qs(parts.query).get("virtual_host", ["0"])[0].lstrip("/") or "0"
        return redis.Redis(
            unix_socket_path=unquote(parts.path),
            db=int(database),
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=retry,
        )
    return redis.Redis.from_url(
        address,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        health_check_interval=5,
        retry=retry,
    )


def connect_anew(client: redis.Redis) -> None:
    """Closes the client's free connections, so that its next request connects again.

    After a failover the address may lead to another server. Connections that other threads use stay open.
    """
    client.connection_pool.disconnect(inuse_connections=False)


class BrokerEpoch:
    """A key in the broker. If it is missing, the broker has forgotten what was published (FLUSHALL, a lost file)."""

    def __init__(self, client: redis.Redis, endpoint: str, queues: Queues = SHARED_QUEUES) -> None:
        """`queues` are those of the endpoint's hints."""
        self._client = client
        self._queues = queues
        self._key = f"antrean:{hashlib.sha256(endpoint.encode()).hexdigest()[:16]}:epoch"

    def is_present(self) -> bool:
        """Whether the key is there. Raises BrokerAway."""
        try:
            return bool(self._client.exists(self._key))
        except redis.RedisError as exc:
            raise BrokerAway(f"the broker does not answer: {type(exc).__name__}") from exc

    def set(self) -> None:
        """Sets the key. Raises BrokerAway."""
        try:
            self._client.set(self._key, b"1")
        except redis.RedisError as exc:
            raise BrokerAway(f"the broker does not answer: {type(exc).__name__}") from exc

    def is_empty(self) -> bool:
        """Whether no message lies in the endpoint's queues. Raises BrokerAway."""
        return count_messages(self._client, self._queues.names) == 0

    def fetch_lying_jobs(self, at_most: int) -> frozenset[str]:
        """Ids of jobs whose hints lie in the endpoint's queues: the `at_most` next ones of each list.

        Raises BrokerAway.
        """
        keys = [key for queue in self._queues.names for key in list_keys(queue)]
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.llen(key)
                lengths = pipeline.execute()
            # At once, so that none is passed over while others are taken. Not by LRANGE: no user needed that before.
            with self._client.pipeline(transaction=True) as pipeline:
                for key, length in zip(keys, lengths, strict=True):
                    for place in range(1, min(length, at_most) + 1):
                        pipeline.lindex(key, -place)
                found = [read_hinted_job(raw) for raw in pipeline.execute() if raw is not None]
        except redis.RedisError as exc:
            raise BrokerAway(f"the broker does not answer: {type(exc).__name__}") from exc
        return frozenset(job_id for job_id in found if job_id is not None)


def count_messages(client: redis.Redis, queues: Iterable[str] = SHARED_QUEUES.names) -> int:
    """The number of messages in these queues that no worker has taken. Raises BrokerAway."""
    try:
        with client.pipeline(transaction=False) as pipeline:
            for queue in queues:
                for key in list_keys(queue):
                    pipeline.llen(key)
            return sum(pipeline.execute())
    except redis.RedisError as exc:
        raise BrokerAway(f"the broker does not answer: {type(exc).__name__}") from exc


def check_broker(client: redis.Redis) -> str:
    """The server's name and version. Raises BrokerAway with a sentence that says what to do."""
    try:
        facts = client.info("server")
    except redis.AuthenticationError:
        raise BrokerAway("the broker refuses the password: check ANTREAN_BROKER_URL") from None
    except redis.RedisError as exc:
        words = " ".join(str(exc).split())[:200]
        raise BrokerAway(f"the broker does not answer ({words}): check ANTREAN_BROKER_URL") from exc
    assert isinstance(facts, dict)
    name = "Valkey" if "valkey_version" in facts else "Redis"
    version = facts.get("valkey_version") or facts.get("redis_version", "?")
    return f"{name} {version}"
