"""Queues jobs for the plain Celery worker, and prints the CPU seconds that this took: `… COUNT`."""

from __future__ import annotations

import resource
import sys

from sqlmodel import SQLModel

from bench.plain_celery import complete, engine
from bench.requests_file import make_body


def publish(count: int) -> float:
    """CPU seconds that publishing took."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    for number in range(count):
        complete.delay(number, make_body(number))
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    SQLModel.metadata.create_all(engine)
    sys.stdout.write(f"{publish(int(sys.argv[1]))}\n")
