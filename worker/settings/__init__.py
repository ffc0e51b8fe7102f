"""Every setting of antrean: what it means, where it is read from, and how it is checked."""

from worker.settings.destination import DEFAULT_BASE_URL
from worker.settings.endpoints import KEY_SETTINGS, AuthStyle, EndpointSettings
from worker.settings.loading import load_settings, warn_of_unknown_names
from worker.settings.model import (
    IN_STACK,
    SIMULATION,
    Settings,
)
from worker.settings.secrets import check_api_key, split_keys

__all__ = [
    "DEFAULT_BASE_URL",
    "IN_STACK",
    "KEY_SETTINGS",
    "SIMULATION",
    "AuthStyle",
    "EndpointSettings",
    "Settings",
    "check_api_key",
    "load_settings",
    "split_keys",
    "warn_of_unknown_names",
]
