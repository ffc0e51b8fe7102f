"""Asks all endpoints that jobs may go to before anything is queued. What one of them lacks is told by its name.

An endpoint that does not answer, or refuses its keys, is passed by as long as another serves the same models.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from api_client.config import Credential
from worker.attempt.credentials import Credentials
from worker.errors import AntreanError, Refused
from worker.operations.endpoint_choice import describe_served
from worker.operations.errors import ModelMissing
from worker.operations.preflight import NOT_ASKED, EndpointFacts, ask_endpoint, check_models, list_models
from worker.settings import EndpointSettings, Settings

_MOST_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class AskedEndpoint:
    """An endpoint and what it said of itself; `problem`: why it cannot be used now."""

    endpoint: EndpointSettings
    facts: EndpointFacts = NOT_ASKED
    problem: AntreanError | None = None

    @property
    def offered(self) -> tuple[str, ...] | None:
        """The models that jobs may name there, sorted; None where they are not known."""
        if self.facts.models is not None:
            return tuple(sorted(one for one in self.facts.models if self.endpoint.serves(one)))
        named = self.endpoint.models
        return tuple(sorted(named)) if named and not any(one.endswith("*") for one in named) else None

    def check_table(self) -> list[str]:
        """What is doubtful about the models that its table names. Raises Refused where it has one of them not."""
        names = [one for one in self.endpoint.models if not one.endswith("*")]
        patterns = [one for one in self.endpoint.models if one.endswith("*")]
        listed = self.facts.models
        odd = [
            f"its list has no model for {one}"
            for one in patterns
            if listed is not None and not any(model.startswith(one[:-1]) for model in listed)
        ]
        return check_models(names, self.facts) + odd


@dataclass(frozen=True, slots=True)
class EndpointsFacts:
    """What the endpoints of some tables said, in the order of the tables."""

    asked: tuple[AskedEndpoint, ...]

    @property
    def only_model(self) -> str | None:
        """The one model that they offer together; None where there are several, or they are not known."""
        offered = [one.offered for one in self.asked]
        models = {model for some in offered for model in some or ()}
        return models.pop() if len(models) == 1 and None not in offered else None

    def choose_model(self, wanted: str | None) -> str:
        """The wanted model unless nothing serves it, or the only one. Raises ModelMissing, Refused or Unreachable."""
        if wanted is not None:
            self.check_models([wanted])
            return wanted
        if (only := self.only_model) is not None:
            return only
        models = sorted({model for one in self.asked for model in one.offered or ()})
        named = f" ({list_models(models)})" if models else ""
        raise ModelMissing(f"the endpoints do not serve just one model{named}: name one with ANTREAN_MODEL")

    def check_models(self, wanted: Sequence[str]) -> list[str]:
        """What is doubtful about these models, a sentence for each endpoint at most.

        Raises Refused where no endpoint serves a model, or one that serves it by its table says that it has none
        such; and the problem of an endpoint where all that serve a model have one.
        """
        unserved = sorted({model for model in wanted if not any(self._serving(model))})
        if unserved:
            raise Refused(f"no endpoint serves {list_models(unserved)}: {describe_served(self._endpoints)}")
        for model in wanted:
            problems = [one.problem for one in self._serving(model)]
            if problems[0] is not None and None not in problems:
                raise problems[0]
        doubts = []
        for one in self.asked:
            name, mine = one.endpoint.name, [model for model in wanted if one.endpoint.serves(model)]
            if one.problem is not None or not mine:
                continue
            try:
                doubts += [f"{name}: {doubt}" for doubt in check_models(mine, one.facts)]
            except Refused as exc:
                raise Refused(
                    f"{name}: {exc}; name in `models` of [endpoints.{name}] what it serves"
                ) from None
        return doubts

    @property
    def _endpoints(self) -> list[EndpointSettings]:
        return [one.endpoint for one in self.asked]

    def _serving(self, model: str) -> Iterator[AskedEndpoint]:
        return (one for one in self.asked if one.endpoint.serves(model))


@dataclass(frozen=True, slots=True)
class Answers:
    """What each endpoint said. `models`: what is known of models, for a ModelChoice."""

    asked: tuple[AskedEndpoint, ...]
    models: EndpointFacts | EndpointsFacts

    @property
    def is_up(self) -> bool:
        """Whether one of them would take requests now."""
        return any(one.facts.is_up for one in self.asked)

    @property
    def accepted(self) -> Mapping[str, Sequence[Credential]]:
        """The keys that were taken, by the name of each endpoint that would take requests now."""
        return {one.endpoint.name: one.facts.accepted for one in self.asked if one.facts.is_up}

    def describe_refused_keys(self) -> list[str]:
        """A sentence for each key that is refused where another is taken."""
        return [
            f"the endpoint refuses {place}: going on with the other keys"
            for one in self.asked
            for place in one.facts.refused_keys
        ]

    def describe_passed_by(self) -> list[str]:
        """A sentence for each endpoint that cannot be used, while others can."""
        return [
            f"{one.endpoint.name} is passed by until it answers: {one.problem}"
            for one in self.asked
            if one.problem is not None
        ]


def not_asked(settings: Settings) -> Answers:
    """The same where no endpoint was asked."""
    return _gather(settings, tuple(AskedEndpoint(one) for one in settings.endpoints))


def ask_endpoints(settings: Settings, *, with_chat: bool = True) -> Answers:
    """What each endpoint answers, all asked at the same time: see `ask_endpoint`.

    Raises what that raises where none of them can be used.
    """
    answers = try_endpoints(settings, with_chat=with_chat)
    problems = [one.problem for one in answers.asked]
    if problems[0] is not None and None not in problems:
        raise problems[0]
    return answers


def try_endpoints(settings: Settings, *, with_chat: bool = True) -> Answers:
    """The same, also where none of them can be used."""

    asked_with: list[Credentials] = []

    def ask(endpoint: EndpointSettings) -> AskedEndpoint:
        try:
            facts = ask_endpoint(
                settings.for_endpoint(endpoint), with_chat=with_chat, begins=asked_with.append
            )
        except AntreanError as exc:
            return AskedEndpoint(endpoint, problem=exc)
        return AskedEndpoint(endpoint, facts)

    try:
        return _gather(settings, tuple(_map(ask, settings.endpoints)))
    except KeyboardInterrupt:
        for one in asked_with:
            one.stop()  # a command that is asked for a key goes on without this process
        raise


def _gather(settings: Settings, asked: tuple[AskedEndpoint, ...]) -> Answers:
    # One that is no table's: its sentences need no name.
    return Answers(asked, EndpointsFacts(asked) if settings.endpoint_tables else asked[0].facts)


def _map(
    ask: Callable[[EndpointSettings], AskedEndpoint], endpoints: Sequence[EndpointSettings]
) -> Iterator[AskedEndpoint]:
    if len(endpoints) == 1:
        yield ask(endpoints[0])
        return
    left: SimpleQueue[tuple[Future[AskedEndpoint], EndpointSettings]] = SimpleQueue()
    answers: list[Future[AskedEndpoint]] = []
    for endpoint in endpoints:
        answers.append(Future())
        left.put((answers[-1], endpoint))

    def work() -> None:
        with suppress(Empty):
            while True:
                answer, endpoint = left.get_nowait()
                try:
                    answer.set_result(ask(endpoint))
                except BaseException as exc:  # raised again where the answer is asked for
                    answer.set_exception(exc)

    # Daemons: Ctrl-C waits for none of them.
    for _ in range(min(len(endpoints), _MOST_AT_ONCE)):
        threading.Thread(target=work, name="antrean-ask", daemon=True).start()
    yield from (answer.result() for answer in answers)
