"""Asking the endpoint before anything is queued: a wrong address, key or model is told at once, in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

from api_client.answers import parse_json
from api_client.client import EndpointClient
from api_client.config import Credential
from api_client.errors import ApiError
from api_client.words import clean_words, error_codes
from schemas.address import CHAT_PATH, Address, other_addresses, parse_address
from schemas.failure import Failure, FailureKind
from worker.attempt.credentials import Credentials
from worker.attempt.endpoint import open_endpoint
from worker.errors import Refused, Unreachable
from worker.operations.errors import KeyMissing, ModelMissing
from worker.policy.gates import is_of_a_key
from worker.settings import DEFAULT_BASE_URL, Settings

_T = TypeVar("_T")
_MODELS_TIMEOUT_S = 20.0
_CHAT_TIMEOUT_S = 10.0
_MOST_NAMED = 20
_MOST_ASKED = 8
_NO_SUCH_PATH = (404, 405, 410, 501)
_BUSY = (FailureKind.SERVER_ERROR, FailureKind.RATE_LIMITED, FailureKind.QUOTA, FailureKind.TIMEOUT)
_NO_SUCH_MODEL = (400, 403, 404, 422)


def _no_words(_model: str) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class EndpointFacts:
    """What the endpoint said of itself.

    `models` is None where it gave no list of models, and `models_failure` says why. `chat` says what the chat
    address answered, and `is_up` whether it would take requests now: an endpoint that answers 503 is there, and is
    not up. `accepted`: the keys that it took; `refused_keys`: where those come from that it
    did not. `find_refusal` asks for a model: the endpoint's words where it has no such model, else None.
    """

    models: tuple[str, ...] | None = None
    models_failure: Failure | None = None
    chat: str = "was not asked"
    is_up: bool = False
    find_refusal: Callable[[str], str | None] = field(default=_no_words, compare=False)
    accepted: tuple[Credential, ...] = field(default=(), compare=False)
    refused_keys: tuple[str, ...] = ()

    @property
    def only_model(self) -> str | None:
        """The one model that it runs; None where it runs several, or did not list them."""
        return self.models[0] if self.models is not None and len(self.models) == 1 else None

    def choose_model(self, wanted: str | None) -> str:
        """See the function of this name."""
        return choose_model(wanted, self)

    def check_models(self, wanted: Sequence[str]) -> list[str]:
        """See the function of this name."""
        return check_models(wanted, self)

    @property
    def why_unlisted(self) -> str:
        """Why there is no list of models, as part of a sentence."""
        return "it was not asked" if self.models_failure is None else _describe(self.models_failure)


NOT_ASKED = EndpointFacts()


def ask_endpoint(
    settings: Settings, *, with_chat: bool = True, begins: Callable[[Credentials], None] = lambda _: None
) -> EndpointFacts:
    """What the endpoint answers at `…/models`, and whether anything is at `…/chat/completions`.

    The chat address is asked with a request without messages, which no endpoint completes: nothing is paid. A list
    of models that is refused or odd is no reason to stop: see `check_models`. Either header style is tried where the
    style is `auto`. `begins` is told of the credentials before a command is run for a key. Raises Refused for a key
    that is refused, KeyMissing, KeyUnavailable, Unreachable for an endpoint that does not answer or has nothing at its
    chat address, SettingsError for an address that no call can go to.
    """
    question = _Question(settings, begins)
    models, failure = question.fetch_models()
    chat = "was not asked"
    if with_chat:
        chat = question.describe_chat(failure)
    return EndpointFacts(
        models,
        failure,
        chat,
        question.is_up,
        cache(question.find_refusal),
        tuple(question.accepted),
        tuple(question.refused_places),
    )


def choose_model(wanted: str | None, facts: EndpointFacts) -> str:
    """The model to ask for: the wanted one unless the endpoint refuses it, or its only one.

    Raises ModelMissing or Refused. What is doubtful about it, `check_models` says.
    """
    if wanted is not None:
        check_models([wanted], facts)
        return wanted
    if facts.models is None:
        raise ModelMissing(
            f"the endpoint does not list its models ({facts.why_unlisted}): name one with ANTREAN_MODEL"
        )
    if len(facts.models) != 1:
        raise ModelMissing(
            f"the endpoint runs several models ({list_models(facts.models) or 'none at all'}): "
            "name one with ANTREAN_MODEL"
        )
    return facts.models[0]


def check_models(wanted: Sequence[str], facts: EndpointFacts) -> list[str]:
    """What is doubtful about these models, at most one sentence: they may be aliases, or the list may be odd.

    Raises Refused if the endpoint itself says that it has no such model.
    """
    unlisted = sorted(set(wanted) - set(facts.models or ()))
    if not unlisted or facts is NOT_ASKED:
        return []
    refused = {model: words for model in unlisted[:_MOST_ASKED] if (words := facts.find_refusal(model))}
    if refused:
        runs = f"; it runs: {list_models(facts.models) or 'none'}" if facts.models is not None else ""
        words = "; ".join(dict.fromkeys(refused.values()))
        raise Refused(f"the endpoint does not run {list_models(list(refused))} ({words}){runs}")
    if facts.models is None:
        return [
            f"the endpoint does not list its models ({facts.why_unlisted}): going on with {list_models(unlisted)}"
        ]
    return [
        f"the endpoint's list has no {list_models(unlisted)} (it has {list_models(facts.models) or 'no model'}): "
        "going on, because it may accept names that it does not list"
    ]


def list_models(models: Sequence[str]) -> str:
    """Their names for a sentence, at most 20."""
    shown = [clean_words(model) for model in models[:_MOST_NAMED]]
    more = len(models) - len(shown)
    return ", ".join([*shown, f"and {more:,} more"] if more else shown)


class _Question:
    """The calls that ask one endpoint, each on a connection of its own."""

    def __init__(self, settings: Settings, begins: Callable[[Credentials], None]) -> None:
        self._settings = settings
        self._address = parse_address(settings.base_url)
        self._credentials = Credentials(settings)
        begins(self._credentials)
        self._credential, *self._others = self._credentials.fetch()
        self.accepted: list[Credential] = []
        self.refused_places: list[str] = []
        self._is_chat_silent = False  # then it is not asked again
        self.is_up = False
        if self._credential.key is None and settings.base_url == DEFAULT_BASE_URL:
            raise KeyMissing(f"{settings.base_url} needs a key: set {settings.describe_setting('api_key')}")

    def fetch_models(self) -> tuple[tuple[str, ...] | None, Failure | None]:
        """The models, or None and why they cannot be listed. Each key is tried; the first that is taken is used.

        Raises Refused where no key is taken; Unreachable where no server answers.
        """
        found: list[tuple[Credential, tuple[str, ...] | None, Failure | None]] = []
        for credential in (self._credential, *self._others):
            self._credential = credential
            try:
                models = self._ask(
                    lambda client, key: client.models(credential=key), _MODELS_TIMEOUT_S, self._address
                )
            except ApiError as exc:
                if exc.failure.http_status is None and not exc.failure.was_sent:
                    raise self._unreachable(exc.failure) from None
                if exc.failure.kind is FailureKind.UNAUTHORIZED:
                    self.refused_places.append(self._credentials.find_place(credential))
                    continue
                found.append((self._credential, None, exc.failure))
                if is_of_a_key(exc.failure.kind):
                    continue
                break  # it is not the key's, and may have taken long
            self.accepted.append(self._credential)
            found.append((self._credential, tuple(models), None))
        if not found:
            raise self._refused()
        self._credential, listed, failure = min(found, key=lambda one: one[2] is not None)
        return listed, failure

    def describe_chat(self, models_failure: Failure | None) -> str:
        """What the chat address answers, as the rest of a sentence. Raises Refused or Unreachable."""
        failure = self._probe(self._address)
        is_busy = failure is not None and failure.kind in _BUSY
        # Some servers break at a request without messages: then their list of models is what is known.
        is_broken = failure is not None and failure.kind is FailureKind.UNREACHABLE
        self.is_up = models_failure is None if is_broken else not is_busy
        if failure is None:
            return "answers"
        if failure.kind is FailureKind.UNAUTHORIZED:
            raise self._refused()
        if failure.http_status is None:
            self._is_chat_silent = True
            if models_failure is not None and models_failure.http_status is None:
                raise self._unreachable(models_failure)
            return f"did not answer a request without messages ({failure.message})"
        if _is_nothing_there(failure, self._address):
            raise Unreachable(
                f"nothing that takes requests is at {self._address.chat_url} ({_describe(failure)}): "
                f"check {self._settings.describe_setting('base_url')}{self._where_it_is()}"
            )
        return f"answers a request without messages with HTTP {failure.http_status}"

    def find_refusal(self, model: str) -> str | None:
        """The endpoint's words where it says that it has no such model; None otherwise."""
        failure = None if self._is_chat_silent else self._probe(self._address, model)
        if failure is None or failure.http_status not in _NO_SUCH_MODEL:
            return None
        # A complaint about the missing messages may quote the whole request, its model too.
        is_refused = _speaks_of_model(failure, self._address) and "messages" not in failure.message.lower()
        return failure.message if is_refused else None

    def _where_it_is(self) -> str:
        for other in other_addresses(self._address):
            failure = self._probe(other)
            if failure is None or (
                failure.http_status is not None
                and failure.http_status < 500
                and not _is_nothing_there(failure, other)
            ):
                return f" ({other.chat_url} answers: set it to {other.base_url})"
        return ", or give the whole address that ends in /chat/completions"

    def _probe(self, address: Address, model: str | None = None) -> Failure | None:
        try:
            self._ask(lambda client, key: client.probe_chat(model, credential=key), _CHAT_TIMEOUT_S, address)
        except ApiError as exc:
            return exc.failure
        return None

    def _ask(
        self,
        call: Callable[[EndpointClient, Credential], _T],
        within_s: float,
        address: Address,
    ) -> _T:
        """What the call returns, with the other header style where the first is refused. Raises ApiError."""
        with closing(self._client(within_s, address)) as client:
            try:
                return call(client, self._credential)
            except ApiError as exc:
                other = self._credentials.other_style(self._credential)
                if exc.failure.kind is not FailureKind.UNAUTHORIZED or other is None:
                    raise
            try:
                found = call(client, other)
            except ApiError as exc:
                if exc.failure.kind is not FailureKind.UNAUTHORIZED:
                    self._credential = other
                raise
            self._credential = other
            return found

    def _refused(self) -> Refused:
        missing = "no key was sent: set" if self._credential.key is None else "it refuses the key: check"
        return Refused(
            f"{self._settings.base_url} answers 401, {missing} {self._credentials.setting} "
            f"(header style {self._settings.auth_style}; see {self._settings.describe_setting('auth_style')})"
        )

    def _client(self, within_s: float, address: Address) -> EndpointClient:
        return open_endpoint(self._settings, base_url=address.base_url, within_s=within_s, pool_size=1)

    def _unreachable(self, failure: Failure) -> Unreachable:
        return Unreachable(
            f"{self._settings.base_url} does not answer as it should ({failure.message}): "
            f"check {self._settings.describe_setting('base_url')}"
        )


def _is_nothing_there(failure: Failure, address: Address) -> bool:
    """Whether this answer shows that no API is at `address`. A 404 that speaks of a model comes from an API."""
    status = failure.http_status or 0
    if 200 <= status < 300:
        return "an HTML page" in failure.message
    return 300 <= status < 400 or (status in _NO_SUCH_PATH and not _speaks_of_model(failure, address))


def _speaks_of_model(failure: Failure, address: Address) -> bool:
    words = " ".join([failure.message, *error_codes(parse_json(failure.body or b""))])
    path = address.root.split("/", 3)[3:]
    for part in (CHAT_PATH, *(f"/{one}" for one in path)):
        words = words.replace(part, "")  # "Cannot POST /models/chat/completions" speaks of a path
    return "model" in words.lower()


def _describe(failure: Failure) -> str:
    status = failure.http_status
    is_said = status is None or f"HTTP {status}" in failure.message
    return failure.message if is_said else f"HTTP {status}: {failure.message}"
