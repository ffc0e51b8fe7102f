"""A folder of documents, and somebody who types `antrean run`: in this process, with a broker that takes everything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.ledger import claim, record, success
from tests.support.upkeep import Broker
from worker.clock import SystemClock
from worker.operations import run_holding, run_work
from worker.operations.run_work import Work
from worker.settings import Settings, load_settings
from worker.sources.documents import find_documents
from worker.sources.prompt import Prompt
from worker.storage.batches import count_states, fetch_batch
from worker.storage.engine import Ledger
from worker.storage.reading import iterate_batch_outcomes, iterate_outcomes
from worker.throttle.gatekeeper import Gatekeeper
from worker.throttle.store import MemoryGateStore
from worker.upkeep.relay import Relay


class Desk:
    """A folder of documents, and somebody who types `antrean run`."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger = ledger
        self.documents = folder / "docs"
        (self.documents / "sub").mkdir(parents=True)
        for n in range(3):
            self.write(f"sub/{n}.txt", f"text {n}")
        (folder / "p.md").write_text("Sum up: {{ text }}")
        self.prompt = Prompt.load(folder / "p.md")
        home = folder / "proj" / ".antrean"
        home.mkdir(parents=True)
        self.settings: Settings = load_settings(home=home, base_url="http://127.0.0.1:1", _env_file=None)
        self.broker = Broker(ledger)
        clock = SystemClock()
        gates = Gatekeeper(MemoryGateStore(), clock, probe_ttl_s=60)
        self.relay = Relay(
            ledger,
            self.broker.publish,
            self.broker,
            gates,
            clock,
            endpoint=self.settings.endpoint,
            republish_after_s=120.0,
        )

    def write(self, name: str, text: str) -> None:
        (self.documents / name).write_text(text)

    @contextmanager
    def run(self, part: str = "") -> Iterator[Work]:
        """A run over a part of the folder, which lives inside."""
        source = self.documents / part
        batch = run_work.make_run(self.ledger, self.settings, source, self.prompt, "m")
        with run_holding.worked_on(self.ledger, self.settings, batch) as lock:
            yield run_work.submit_run(
                self.ledger, self.settings, batch, find_documents(source), self.prompt, "m", lock
            )

    def answer(self, *ids: str) -> None:
        """The endpoint answers those of `ids` that are to be had."""
        token = f"t{self.ledger.run(lambda c: c.exec_driver_sql('SELECT count(*) FROM attempts').scalar())}"
        got = claim(self.ledger, *set(ids), endpoint=self.settings.endpoint, token=token)
        record(self.ledger, *(success(job) for job in got.values()))

    def relayed(self) -> set[str]:
        """What is published now."""
        self.broker.taken.clear()
        self.relay.tick()
        self.relay.tick()
        return set(self.broker.taken)

    def names(self, work: Work) -> list[str | None]:
        """The names of the results as the run writes them."""
        return [one.custom_id for one in iterate_outcomes(self.ledger, work.ids)]

    def results(self, work: Work) -> list[str | None]:
        """The names that `antrean results` gives."""
        return [one.custom_id for one in iterate_batch_outcomes(self.ledger, work.batch_id)]

    def states(self, work: Work) -> dict[str, int]:
        with self.ledger.read() as connection:
            return {str(one): count for one, count in count_states(connection, work.batch_id).items()}

    def is_held(self, work: Work) -> bool:
        with self.ledger.read() as connection:
            batch = fetch_batch(connection, work.batch_id)
        assert batch is not None
        return batch.held_at_ms is not None
