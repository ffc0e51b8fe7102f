"""Publishing: job ids become Celery messages, a pipeline a batch. A message carries nothing of the prompt."""

from __future__ import annotations

from collections.abc import Sequence

import redis
from kombu.exceptions import KombuError, OperationalError

from worker.celery import app
from worker.channel import BULK_QUEUE, LONE_QUEUE
from worker.errors import BrokerAway
from worker.storage.window import Due

TASK = "antrean.complete_chat"
_BATCH = 1000


def publish(due: Sequence[Due]) -> None:
    """Hands the jobs to the broker. Raises BrokerAway: some may have arrived; claims sort that out."""
    try:
        with app.producer_pool.acquire(block=True, timeout=5) as producer, producer.batch(_BATCH):
            for job in due:
                app.send_task(
                    TASK,
                    kwargs={"job_id": job.id},
                    task_id=job.id,
                    queue=BULK_QUEUE if job.is_bulk else LONE_QUEUE,
                    priority=job.priority,
                    producer=producer,
                    retry=False,
                    argsrepr="()",
                    kwargsrepr="{}",
                )
    except (KombuError, OperationalError, redis.RedisError, OSError) as exc:
        raise BrokerAway(f"the broker does not take messages: {type(exc).__name__}") from exc
