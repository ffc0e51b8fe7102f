"""The client of the endpoint that the settings name: whatever keeps calls from it is a problem of the settings."""

from __future__ import annotations

from api_client.client import EndpointClient
from api_client.config import EndpointConfig
from worker.errors import SettingsError
from worker.settings import Settings


def open_endpoint(
    settings: Settings,
    *,
    base_url: str | None = None,
    within_s: float | None = None,
    pool_size: int | None = None,
) -> EndpointClient:
    """A client with these settings, or for another address of the same endpoint. It connects when it is asked.

    `within_s` shortens all of its timeouts. Raises SettingsError with a sentence where no call could leave: a proxy
    that is not spoken, a CA bundle that does not exist.
    """
    connect_s, read_s, deadline_s = settings.connect_timeout_s, settings.read_timeout_s, settings.deadline_s
    if within_s is not None:
        connect_s, read_s, deadline_s = min(connect_s, within_s), min(read_s, within_s), within_s
    try:
        return EndpointClient(
            EndpointConfig(
                base_url=settings.base_url if base_url is None else base_url,
                connect_timeout_s=connect_s,
                read_timeout_s=read_s,
                deadline_s=deadline_s,
                max_response_bytes=settings.max_response_bytes,
                pool_size=settings.call_count if pool_size is None else pool_size,
            )
        )
    except ValueError as exc:
        raise SettingsError([f"the endpoint {settings.base_url} cannot be called: {exc}"]) from None
