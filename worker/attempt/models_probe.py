"""Asks the endpoint for its list of models in an outage, before a job is called to test whether the outage is over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing

import structlog

from api_client.config import Credential
from api_client.errors import ApiError
from schemas.failure import Failure, FailureKind
from worker.attempt.credentials import Credentials
from worker.attempt.endpoint import open_endpoint
from worker.clock import Clock
from worker.errors import KeyUnavailable
from worker.settings import Settings
from worker.throttle.gatekeeper import Gatekeeper, Permit
from worker.throttle.key_gates import KeyGates

log = structlog.get_logger(__name__)
_WITHIN_S = 5.0
_DEAF_FOR_S = (
    600.0  # after an answer that decides nothing: the endpoint has no such list, or not for this key
)
# A list that fails although the endpoint would complete requests must not keep the gate shut for ever.
_ASKED_IN_VAIN = 6
_OUTAGES = frozenset({FailureKind.SERVER_ERROR, FailureKind.TIMEOUT, FailureKind.UNREACHABLE})


class ModelsProbe:
    """One per process. Its calls count as probes of the gate: all workers of an endpoint ask one at a time.

    A list that is not answered is one more refusal, so that the gate's backoff goes on. A list that is answered does
    not open the gate, because an answer of one path proves nothing of another: a job is called next, by any worker.
    Until then the gatekeeper lets no job test the gate, also none that was in hand when the gate shut.
    """

    def __init__(
        self,
        gatekeeper: Gatekeeper,
        clock: Clock,
        *,
        ask: Callable[[], object],
        spawn: Callable[[Callable[[], None]], object],
        on_answer: Callable[[], None] = lambda: None,
    ) -> None:
        """`ask` fetches the list, and raises ApiError. `spawn` runs it, in a thread mostly; `on_answer`: it is over."""
        self._gatekeeper = gatekeeper
        gatekeeper.asks_for_a_list = True
        self._clock = clock
        self._ask = ask
        self._spawn = spawn
        self._on_answer = on_answer
        self._lock = threading.Lock()
        self._is_asking = False
        self._deaf_until_s = float("-inf")
        self._in_vain = 0

    def may_call_a_job(self) -> bool:
        """Whether a job may test the gate now. If not, the endpoint is being asked for its models."""
        gate = self._gatekeeper.current_gate()
        if gate is None or not gate.waits_for_a_list:
            return True
        if self._clock.monotonic_s() < self._deaf_until_s:
            self._gatekeeper.let_jobs()
            return True
        with self._lock:
            if self._is_asking:
                return False
            self._is_asking = True
        try:
            self._spawn(self._probe)
        except RuntimeError:  # no thread is left for it
            self._is_asking = False
            self._gatekeeper.let_jobs()
            return True
        return False

    def _probe(self) -> None:
        try:
            with self._gatekeeper.admit() as permit:
                if permit.is_granted and permit.is_probe:
                    self._settle(permit, self._fetch_failure())
        finally:
            self._is_asking = False
        self._on_answer()

    def _fetch_failure(self) -> Failure | None:
        """None: the list was answered."""
        try:
            self._ask()
        except ApiError as exc:
            return exc.failure
        return None

    def _settle(self, permit: Permit, failure: Failure | None) -> None:
        if failure is None:
            self._let_jobs()
        elif failure.is_local or failure.kind is FailureKind.INTERRUPTED:
            return
        elif failure.kind not in _OUTAGES:
            self._deaf_until_s = self._clock.monotonic_s() + _DEAF_FOR_S
            log.info("probe.no_models", kind=failure.kind.value, http_status=failure.http_status)
        else:
            self._in_vain += failure.was_sent
            if self._in_vain >= _ASKED_IN_VAIN:
                self._let_jobs()
                return
            self._gatekeeper.shut(
                failure.kind, asked_s=failure.retry_after_s, permit=permit, http_status=failure.http_status
            )

    def _let_jobs(self) -> None:
        self._in_vain = 0
        self._gatekeeper.let_jobs()


def build_models_probe(
    settings: Settings,
    gates: KeyGates,
    credentials: Credentials,
    clock: Clock,
    *,
    on_answer: Callable[[], None],
) -> ModelsProbe:
    """A probe of the endpoint of these settings, each call on a connection and in a thread of its own."""

    def ask() -> object:
        credential = choose_credential(gates, credentials)
        with closing(open_endpoint(settings, within_s=_WITHIN_S, pool_size=1)) as client:
            return client.models(credential=credential)

    def spawn(work: Callable[[], None]) -> None:
        threading.Thread(target=work, name="antrean-probe", daemon=True).start()

    return ModelsProbe(gates.endpoint, clock, ask=ask, spawn=spawn, on_answer=on_answer)


def choose_credential(gates: KeyGates, credentials: Credentials) -> Credential:
    """One whose key is not set aside, if there is any. Raises ApiError where no key can be had."""
    try:
        return credentials.get(gates.find_usable_key()) or credentials.fetch()[0]
    except KeyUnavailable as exc:
        raise ApiError(Failure(FailureKind.UNAUTHORIZED, str(exc), was_sent=False)) from None
