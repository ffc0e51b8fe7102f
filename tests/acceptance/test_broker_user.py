"""The broker's user of docs/operations.md: what it may do is enough, for all that speaks to the broker."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from tests.support.audit import states
from tests.support.processes import ROOT, Shop, end, wait_until
from worker.broker.client import BrokerEpoch, open_client
from worker.broker.hints import list_key, queues_of, write_hint
from worker.settings import load_settings
from worker.storage.engine import open_ledger

REQUEST = {"model": "DeepSeek-V3.1", "messages": [{"role": "user", "content": "Say one."}]}


@pytest.fixture
def as_documented(shop: Shop, valkey: Any, valkey_path: str) -> Iterator[str]:
    """The broker's address with the user that the page tells to make."""
    page = (ROOT / "docs" / "operations.md").read_text()
    found = re.search(r"^ACL (SETUSER antrean .*?)(?=^ACL )", page, re.MULTILINE | re.DOTALL)
    assert found is not None
    valkey.execute_command("ACL", *found[1].replace(">PASSWORD", ">s:cret").split())
    valkey.acl_log_reset()
    yield f"redis+socket://antrean:s%3Acret@{valkey_path}?virtual_host=0"
    valkey.acl_deluser("antrean")


@pytest.mark.slow
def test_the_brokers_user_needs_no_more_than_the_page_says(
    shop: Shop, valkey: Any, as_documented: str
) -> None:
    shop.settings |= {"broker_url": as_documented, "database_url": f"sqlite:///{shop.folder}/l.db"}
    assert shop.antrean("migrate").code == 0
    assert shop.antrean("check").code == 0
    (shop.folder / "in.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n' * 50)
    assert shop.antrean("submit", "in.jsonl").code == 0
    worker = shop.worker()
    with Celery("foreign", broker=as_documented, set_as_current=False) as foreign:
        for _ in range(20):
            foreign.send_task("antrean.complete_chat", kwargs={"request": REQUEST}, ignore_result=True)
        assert foreign.control.inspect(timeout=5, limit=1).ping()
    ledger = open_ledger(load_settings(**shop.settings, _env_file=None))
    ended: Callable[[], bool] = lambda: states(ledger)["succeeded"] == 70  # noqa: E731
    wait_until(ended, within_s=30, what="all jobs ended")
    ledger.dispose()
    assert shop.antrean("doctor").code == 0
    with Celery("foreign", broker=as_documented, set_as_current=False) as foreign:
        foreign.send_task("their.task", ignore_result=True)
    is_aside: Callable[[], bool] = lambda: valkey.exists("antrean.set-aside:celery") == 1  # noqa: E731
    wait_until(is_aside, within_s=10, what="another app's message is set aside")
    assert end(worker)[0] == 0
    assert shop.antrean("give-back").code == 0
    # What a relay does once calls have taken a minute.
    queues = queues_of("ledger", "endpoint")
    valkey.lpush(list_key(queues.bulk, 9), write_hint("j", queue=queues.bulk, priority=9))
    assert BrokerEpoch(open_client(as_documented), "endpoint", queues).fetch_lying_jobs(9) == {"j"}
    log = (shop.folder / "worker.log").read_text()
    assert "broker.tells_nothing" not in log
    assert valkey.acl_log() == []
