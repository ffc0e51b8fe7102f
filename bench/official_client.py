"""The official async client as its users run it for a bulk: so many coroutines, one client, nothing stored.

`python -m bench.official_client URL SLOTS JOBS TRANSPORT OUT`; OUT gets a line `started ended` a job, at the end.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from openai import AsyncOpenAI, DefaultAioHttpClient, OpenAIError

from bench.requests_file import make_body


async def main(url: str, slots: int, jobs: int, transport: str, out: Path) -> None:
    """Makes all calls, then writes down when each began and ended."""
    http_client = DefaultAioHttpClient() if transport == "aiohttp" else None
    numbers = iter(range(jobs))
    times: list[tuple[float, float]] = []
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="k", http_client=http_client) as client:
        await asyncio.gather(*(_work(client, numbers, times) for _ in range(slots)))
    out.write_text("".join(f"{started} {ended}\n" for started, ended in times))


async def _work(client: AsyncOpenAI, numbers: Iterator[int], times: list[tuple[float, float]]) -> None:
    for number in numbers:
        body = make_body(number)
        started = time.time()
        try:
            completion = await client.chat.completions.create(**body)
        except OpenAIError:  # it tried again by itself before it gave up
            continue
        assert completion.choices[0].message.content
        times.append((started, time.time()))


if __name__ == "__main__":
    _url, _slots, _jobs, _transport, _out = sys.argv[1:]
    asyncio.run(main(_url, int(_slots), int(_jobs), _transport, Path(_out)))
