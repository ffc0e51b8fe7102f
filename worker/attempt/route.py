"""A route: one endpoint as this worker calls it, with all that is kept for it alone."""

from __future__ import annotations

import random
from collections.abc import Callable

import structlog

from api_client.client import EndpointClient
from worker.attempt.calling import Caller
from worker.attempt.credentials import Credentials
from worker.attempt.judge import Judge
from worker.clock import Clock
from worker.policy.cost import Price
from worker.policy.retry import RetryRules
from worker.prices.book import PriceBook
from worker.storage.writer import GroupWriter
from worker.throttle.gatekeeper import Permit
from worker.throttle.key_gates import KeyGates
from worker.throttle.meter import Meter
from worker.throttle.told import ToldLimits

log = structlog.get_logger(__name__)


class Route:
    """The client, the keys, the gates, the counts, the prices and the judgement of one endpoint. Thread-safe."""

    def __init__(
        self,
        endpoint: str,
        *,
        client: EndpointClient,
        credentials: Credentials,
        gates: KeyGates,
        writer: GroupWriter,
        rules: RetryRules,
        clock: Clock,
        prices: PriceBook,
        is_proven: bool,
        is_stopping: Callable[[], bool],
        is_one_of_several: bool = False,
        passes_priority: bool = False,
        told: ToldLimits | None = None,
        meter: Meter | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`endpoint`: the identity of the endpoint. `is_stopping`: no call begins any more.

        `is_proven`: the endpoint has answered a job before. `meter` counts what the calls come to.
        `passes_priority`: the endpoint is told which calls come first. `told`: the limits that its answers tell.
        """
        self.endpoint = endpoint
        self.noted_as = endpoint if is_one_of_several else None  # by the attempts
        self.client = client
        self.credentials = credentials
        self.gates = gates
        self.meter = meter or Meter()
        self.prices = prices
        self._clock = clock
        self.caller = Caller(
            client,
            credentials,
            gates,
            writer=writer,
            retry_after_cap_s=rules.retry_after_cap_s,
            clock=clock,
            is_stopping=is_stopping,
            passes_priority=passes_priority,
        )
        self.judge = Judge(
            gates,
            writer,
            rules=rules,
            clock=clock,
            rng=rng or random.Random(),
            is_proven=is_proven,
            told=told,
            calls_in_flight=lambda: client.calls_in_flight,
            marks=self.meter.marks,
        )

    def note_answer(self, permit: Permit, *, latency_s: float, tokens: int, tokens_out: int) -> None:
        """The call was answered: see `Meter.note_answer`. Where there are several keys, it counts for its key."""
        self.meter.note_answer(permit, latency_s=latency_s, tokens=tokens, tokens_out=tokens_out)
        if permit.hold is not None:
            permit.hold.note_answer(permit, latency_s=latency_s, tokens=tokens, tokens_out=tokens_out)

    def note_failure(self, permit: Permit, *, is_refusal: bool, tokens: int = 0) -> None:
        """The call failed: see `Meter.note_failure`. Where there are several keys, it counts for its key."""
        self.meter.note_failure(permit, is_refusal=is_refusal, tokens=tokens)
        if permit.hold is not None:
            permit.hold.note_failure(permit, is_refusal=is_refusal)

    def find_price(self, *models: str, at_ms: int | None = None) -> Price | None:
        """The price of a model that has these names, now or at that time; None where it is not known."""
        try:
            return self.prices.find(*models, now_ms=self._clock.now_ms() if at_ms is None else at_ms)
        except Exception as exc:  # a defect there must not cost the answer, which is paid for
            log.error("price.not_found", error=type(exc).__name__)
            return None
