"""The routes of a worker: to which endpoints a job may go, and what is known of all of them together."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence

import structlog

from worker.attempt.pool_slots import EndpointSlots
from worker.attempt.route import Route
from worker.clock import Clock
from worker.policy.cost import Price, find_dearest
from worker.policy.routing import ANY, find_servers, has, list_groups

log = structlog.get_logger(__name__)
_LACKS_FOR_S = 600.0  # an endpoint that said that it has no such model is asked again after that
_MOST_MODELS = 1000
_NEVER_S = float("inf")


class Routes:
    """One per process. Thread-safe. With one endpoint for all models, nothing here looks at the model of a job."""

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        models: Sequence[Collection[str]] = ((),),
        slots: Sequence[EndpointSlots] = (),
        clock: Clock,
    ) -> None:
        """`models`: the patterns of each route; none for any. `slots`: of each route, where one is chosen."""
        self.every = tuple(routes)
        self._models = tuple(models)
        # Of one endpoint for all models nothing is to be chosen.
        self.choose = len(self.every) > 1 or any(self._models)
        self._slots = tuple(slots)
        self._clock = clock
        self._lock = threading.Lock()
        self._lacking: dict[str, dict[int, float]] = {}  # model → endpoint → until when (monotonic)
        self._forget_at_s = _NEVER_S  # when the first of these is over
        self._found: dict[str, int] = {}
        self._groups = list_groups(self._models)
        if self.choose:
            for index, one in enumerate(self.every):
                one.judge.others = Others(self, index)

    def __getitem__(self, index: int) -> Route:
        return self.every[index]

    @property
    def groups(self) -> tuple[int, ...]:
        """All sets of endpoints that a model may have."""
        with self._lock:
            self._forget_old()
            return self._groups

    def find(self, model: str | None) -> int:
        """The set of endpoints that a job of this model may go to; None: the model is not known yet."""
        if model is None or not self.choose:
            return ANY
        found = self._found.get(model)
        if found is not None and self._clock.monotonic_s() < self._forget_at_s:
            return found
        with self._lock:
            self._forget_old()
            found = self._found.get(model)
            if found is None:
                found = find_servers(self._models, model, self._lacking.get(model, ()))
                if len(self._found) >= _MOST_MODELS:
                    self._found.clear()
                self._found[model] = found
            return found

    def are_shut(self, group: int, job_id: str) -> bool:
        """Whether all endpoints of the set refuse this job, by the last known state. Reads nothing."""
        if not self.choose:
            return self.every[0].gates.is_known_shut(job_id)
        return not any(has(group, one.index) and one.takes_calls for one in self._slots)

    def is_open_elsewhere(self, model: str, index: int) -> bool:
        """Whether an endpoint other than this one serves the model, and is open."""
        group = self.find(model)
        return any(has(group, one.index) and one.index != index and one.is_open() for one in self._slots)

    def note_lack(self, model: str, index: int) -> bool:
        """This endpoint has no such model. Returns whether another one may serve it: jobs then go there only."""
        with self._lock:
            others = find_servers(self._models, model, (*self._lacking.get(model, ()), index))
            if has(others, index):
                return False
            if len(self._lacking) >= _MOST_MODELS:
                self._lacking.clear()
            until_s = self._clock.monotonic_s() + _LACKS_FOR_S
            self._lacking.setdefault(model, {})[index] = until_s
            self._forget_at_s = min(self._forget_at_s, until_s)
            self._found.clear()
            self._groups = list_groups(self._models, self._lacking)
        log.warning("route.lacks_model", endpoint=self.every[index].endpoint)
        return True

    def find_price(self, *models: str) -> Price | None:
        """The price of a model at the dearest of the endpoints that serve it; None where that of one is not known."""
        if not self.choose:
            return self.every[0].find_price(*models)
        group = self.find(models[-1])
        prices = [one.find_price(*models) for index, one in enumerate(self.every) if has(group, index)]
        return find_dearest(one for one in prices if one is not None) if None not in prices else None

    def find_past_price(self, endpoint: str, *models: str, at_ms: int) -> Price | None:
        """The price of a model that this endpoint asked then; None also where it is none of this worker's."""
        route = next((one for one in self.every if one.endpoint == endpoint), None)
        return None if route is None else route.find_price(*models, at_ms=at_ms)

    def room_to_fetch(self) -> int | None:
        """How many messages this process should have; None: no bound. See `KeyGates.room_to_fetch`."""
        rooms = [one.gates.room_to_fetch() for one in self.every]
        bounds = [one for one in rooms if one is not None]
        return max(bounds) if len(bounds) == len(rooms) else None

    @property
    def openings(self) -> int:
        """Rises each time that jobs which wait at a gate have a new chance."""
        return sum(one.gates.openings for one in self.every)

    @property
    def calls_in_flight(self) -> int:
        return sum(one.client.calls_in_flight for one in self.every)

    @property
    def oldest_call_s(self) -> float | None:
        """For how many seconds the oldest call in flight has been so; None without one."""
        return max((age for one in self.every if (age := one.client.oldest_call_s) is not None), default=None)

    def cut_all_calls(self) -> int:
        """Ends all calls, and returns their number."""
        return sum(one.client.cut_all_calls() for one in self.every)

    def cut_key_commands(self) -> None:
        """Ends commands that are asked for a key. Their jobs are given back."""
        for one in self.every:
            one.credentials.stop()

    def _forget_old(self) -> None:
        """With the lock held."""
        now_s = self._clock.monotonic_s()
        if now_s < self._forget_at_s:
            return
        kept = {
            model: until
            for model, of_model in self._lacking.items()
            if (until := {index: until_s for index, until_s in of_model.items() if until_s > now_s})
        }
        self._lacking = kept
        self._forget_at_s = min(
            (one for of_model in kept.values() for one in of_model.values()), default=_NEVER_S
        )
        self._found.clear()
        self._groups = list_groups(self._models, kept)


class Others:
    """What the judge of one endpoint knows of the other ones."""

    def __init__(self, routes: Routes, index: int) -> None:
        self._routes = routes
        self._index = index

    def are_open(self, model: str) -> bool:
        """Whether another endpoint serves the model, and is open."""
        return self._routes.is_open_elsewhere(model, self._index)

    def note_lack(self, model: str) -> bool:
        """This endpoint has no such model. Returns whether another one may serve it."""
        return self._routes.note_lack(model, self._index)
