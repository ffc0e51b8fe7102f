from __future__ import annotations

import pytest

from schemas.chat import InvalidRequest
from tests.contract.test_ledger_executor import KEY, House, build  # noqa: F401
from tests.support.ledger import rows
from worker.messages import Asked, build_job, build_refused


def deep(n):
    x = 1
    for _ in range(n):
        x = [x]
    return x


BASE = {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": "x"}]}
REQS = {
    "seed70": BASE | {"seed": 2**70},
    "extra70": BASE | {"metadata": {"n": 2**70}},
    "nan": BASE | {"temperature": float("nan")},
    "nan_extra": BASE | {"metadata": {"x": float("nan")}},
    "deep300": BASE | {"metadata": {"x": deep(300)}},
    "deep900": BASE | {"metadata": {"x": deep(900)}},
    "surrogate": BASE | {"messages": [{"role": "user", "content": "a\ud800b"}]},
    "surrogate_model": BASE | {"model": "a\ud800"},
    "nul_model": BASE | {"model": "a\0"},
    "surrogate_key": BASE | {"metadata": {"\ud800": 1}},
    "none": None,
    "list": [1],
    "str": "hello",
    "bytes_like": BASE | {"metadata": {"x": {"__type__": "bytes"}}},
    "long_model": BASE | {"model": "m" * 10000},
}


@pytest.mark.parametrize("name", REQS)
def test_T5b(build, name):  # noqa: F811
    house = build()
    asked = Asked(request=REQS[name])
    try:
        try:
            job = build_job(
                "task-1", asked, endpoint=house.endpoint, default_model=None, allow_zero_temperature=False
            )
        except InvalidRequest as exc:
            job = build_refused("task-1", asked, exc.errors, endpoint=house.endpoint)
        report = house.executor.execute("task-1", is_bulk=False, adopt=job)
        print(name, report.verdict, report.summary)
    except BaseException as exc:
        pytest.fail(
            f"{name} raised {type(exc).__name__}: {str(exc)[:80]} rows={len(rows(house.ledger, 'jobs'))}"
        )
    assert rows(house.ledger, "jobs")
