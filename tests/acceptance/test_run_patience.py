"""`antrean run --patience` ends with its own exit code where the endpoint lets nothing through, and loses nothing."""

from __future__ import annotations

import json
import re

from tests.support.moody import MODEL, MoodyEndpoint, completion
from tests.support.processes import Shop

LINES = [{"model": MODEL, "messages": [{"role": "user", "content": f"job {n}"}]} for n in range(5)]
CAP = {
    "error": {"message": "You have reached your specified API usage limits.", "type": "invalid_request_error"}
}


def test_a_run_ends_at_a_gate_that_stays_shut_and_the_same_command_goes_on(shop: Shop) -> None:
    (shop.folder / "requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    with MoodyEndpoint(lambda _: (400, CAP)) as endpoint:
        shop.settings["base_url"] = endpoint.url
        stopped = shop.antrean("run", "requests.jsonl", "--patience", "6")
        assert stopped.code == 6, stopped.err
        words = re.escape("You have reached your specified API usage limits.")
        said = rf"no job has ended for 6 s \(quota \(HTTP 400\) since \d\d:\d\d:\d\d: {words} \((until|the next).*same command"
        assert re.search(said, stopped.err), stopped.err
        assert re.search(rf"waiting: quota \(HTTP 400\) since [\d:]+: {words}", stopped.err), stopped.err
        assert endpoint.calls.total() <= 9, "five at once, then probes"
        status = shop.antrean("status", "--json").json
        assert status["jobs"]["failed"] == status["jobs"]["succeeded"] == 0
        endpoint.decide = completion
        done = shop.antrean("run", "requests.jsonl", "--patience", "30")
        assert done.code == 0, done.err
        assert len((shop.folder / "results.jsonl").read_text().splitlines()) == 5
