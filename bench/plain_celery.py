"""A Celery worker as most people write one: the prompt in the message, requests, a commit a job.

`celery -A bench.plain_celery worker -P threads -c SLOTS -E`; BENCH_BROKER, BENCH_ENDPOINT and BENCH_DATABASE say
where. Threads, although most would take the prefork pool: 500 processes do not fit on a machine of two cores.
"""

from __future__ import annotations

import os
import time
from typing import Any

import requests
from celery import Celery
from sqlalchemy import create_engine, event
from sqlmodel import Field, Session, SQLModel

app = Celery("plain", broker=os.environ.get("BENCH_BROKER"))
app.conf.task_acks_late = True
app.conf.task_ignore_result = True
app.conf.broker_connection_retry_on_startup = True
engine = create_engine(os.environ.get("BENCH_DATABASE", "sqlite://"), connect_args={"timeout": 60})


class PlainResult(SQLModel, table=True):
    """What a job came to."""

    id: int = Field(primary_key=True)
    started_s: float
    ended_s: float
    answer: str
    prompt_tokens: int
    completion_tokens: int


@event.listens_for(engine, "connect")
def _use_wal(connection: Any, _record: Any) -> None:
    connection.execute(
        "PRAGMA journal_mode=WAL"
    )  # in its favour: readers and writers do not lock each other out


@app.task(  # type: ignore[untyped-decorator]
    bind=True, autoretry_for=(requests.RequestException,), retry_backoff=True, retry_kwargs={"max_retries": 5}
)
def complete(self: Any, number: int, body: dict[str, Any]) -> None:
    """Calls the endpoint and stores its answer."""
    started_s = time.time()
    response = requests.post(
        f"{os.environ['BENCH_ENDPOINT']}/v1/chat/completions",
        json=body,
        headers={"Authorization": "Bearer k"},
        timeout=(10, 300),
    )
    response.raise_for_status()
    completion = response.json()
    ended_s = time.time()
    with Session(engine) as session:
        session.merge(
            PlainResult(
                id=number,
                started_s=started_s,
                ended_s=ended_s,
                answer=completion["choices"][0]["message"]["content"],
                prompt_tokens=completion["usage"]["prompt_tokens"],
                completion_tokens=completion["usage"]["completion_tokens"],
            )
        )
        session.commit()
