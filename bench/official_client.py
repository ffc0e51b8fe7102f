"""The official async client as its users run it for a bulk: so many coroutines, one client, nothing stored.

`python -m bench.official_client URL SLOTS JOBS TRANSPORT OUT [RETRIES [MAX_TOKENS]]`; OUT gets a line `started ended`
a job, at the end. RETRIES: those that the client makes by itself, instead of its usual two. MAX_TOKENS 0: answers are
not cut off.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openai import DEFAULT_MAX_RETRIES, AsyncOpenAI, DefaultAioHttpClient, OpenAIError

from bench.requests_file import make_body


async def main(
    url: str,
    slots: int,
    jobs: int,
    transport: str,
    out: Path,
    *,
    retries: int = DEFAULT_MAX_RETRIES,
    max_tokens: int | None = 64,
) -> None:
    """Makes all calls, then writes down when each began and ended."""
    http_client = DefaultAioHttpClient() if transport == "aiohttp" else None
    bodies = (make_body(number, max_tokens=max_tokens) for number in range(jobs))
    times: list[tuple[float, float]] = []
    opened = AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=retries, http_client=http_client)
    async with opened as client:
        await asyncio.gather(*(_work(client, bodies, times) for _ in range(slots)))
    out.write_text("".join(f"{started} {ended}\n" for started, ended in times))


async def _work(
    client: AsyncOpenAI, bodies: Iterator[dict[str, Any]], times: list[tuple[float, float]]
) -> None:
    for body in bodies:
        started = time.time()
        try:
            completion = await client.chat.completions.create(**body)
        except OpenAIError:  # it tried again by itself before it gave up
            continue
        assert completion.choices[0].message.content
        times.append((started, time.time()))


if __name__ == "__main__":
    _url, _slots, _jobs, _transport, _out, *_more = sys.argv[1:]
    _options: dict[str, Any] = {}
    if _more:
        _options["retries"] = int(_more[0])
    if _more[1:]:
        _options["max_tokens"] = int(_more[1]) or None
    asyncio.run(main(_url, int(_slots), int(_jobs), _transport, Path(_out), **_options))
