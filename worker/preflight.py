"""Asking the endpoint before anything is queued: a wrong key or model is one sentence, at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from api_client.client import EndpointClient
from api_client.config import EndpointConfig
from api_client.errors import ApiError
from schemas.failure import FailureKind
from worker.credentials import Credentials
from worker.errors import InputError, Refused, Unreachable
from worker.settings import DEFAULT_BASE_URL, Settings

_PREFLIGHT_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class EndpointFacts:
    """What the endpoint said of itself. `models` is None where it has no list of models."""

    models: tuple[str, ...] | None


def ask_endpoint(settings: Settings) -> EndpointFacts:
    """What `/v1/models` answers, with either header style where the style is `auto`.

    Raises Refused for a key that is refused or missing, Unreachable for an endpoint that does not answer.
    """
    credentials = Credentials(settings)
    credential = credentials.current()
    if credential.key is None and settings.base_url == DEFAULT_BASE_URL:
        raise Refused(f"{settings.base_url} needs a key: set ANTREAN_API_KEY, or try --simulate without one")
    client = EndpointClient(
        EndpointConfig(
            base_url=settings.base_url,
            connect_timeout_s=min(settings.connect_timeout_s, _PREFLIGHT_TIMEOUT_S),
            read_timeout_s=min(settings.read_timeout_s, _PREFLIGHT_TIMEOUT_S),
            deadline_s=_PREFLIGHT_TIMEOUT_S,
            pool_size=1,
        )
    )
    try:
        try:
            return EndpointFacts(tuple(client.models(credential=credential)))
        except ApiError as exc:
            other = credentials.other_style(credential)
            if exc.failure.kind is not FailureKind.UNAUTHORIZED or other is None:
                raise
            return EndpointFacts(tuple(client.models(credential=other)))
    except ApiError as exc:
        failure = exc.failure
        if failure.kind is FailureKind.UNAUTHORIZED:
            missing = "no key was sent: set" if credential.key is None else "it refuses the key: check"
            raise Refused(
                f"{settings.base_url} answers 401, {missing} ANTREAN_API_KEY "
                f"(header style {settings.auth_style}; see ANTREAN_AUTH_STYLE)"
            ) from None
        if failure.http_status in (404, 405):
            return EndpointFacts(None)
        raise Unreachable(
            f"{settings.base_url} does not answer as it should ({failure.message}): check ANTREAN_BASE_URL"
        ) from None
    finally:
        client.close()


def choose_model(wanted: str | None, facts: EndpointFacts) -> str:
    """The model to ask for: as wanted if the endpoint has it, or its only one. Raises InputError or Refused."""
    if wanted is not None:
        check_models([wanted], facts)
        return wanted
    if facts.models is None:
        raise InputError("the endpoint lists no models: name one with ANTREAN_MODEL or --model")
    if len(facts.models) != 1:
        listed = ", ".join(facts.models) or "none at all"
        raise InputError(
            f"the endpoint runs several models ({listed}): name one with --model or ANTREAN_MODEL"
        )
    return facts.models[0]


def check_models(wanted: Sequence[str], facts: EndpointFacts) -> None:
    """Raises Refused if the endpoint lists its models and one of `wanted` is not among them."""
    if facts.models is None:
        return
    unknown = sorted(set(wanted) - set(facts.models))
    if unknown:
        listed = ", ".join(facts.models) or "none"
        raise Refused(f"the endpoint does not run {', '.join(unknown)}; it runs: {listed}")
