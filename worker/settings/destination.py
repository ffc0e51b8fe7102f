"""The settings of where requests go: the endpoint, with its key, or the tables of several."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_validator

from schemas.address import parse_address
from worker.settings.endpoints import KEY_SETTINGS, AuthStyle, EndpointSettings
from worker.settings.prices import ModelPrice
from worker.settings.secrets import ApiKey, KeyCommand, split_keys
from worker.settings.slots import SlotSettings
from worker.settings.sources import PREFIX
from worker.settings.values import BaseUrl

DEFAULT_BASE_URL = "https://offline.juxtalabs.io"
_OF_ENDPOINT = ("base_url", "auth_style", *KEY_SETTINGS, *SlotSettings.model_fields)


class DestinationSettings(SlotSettings):
    """Where requests go, and with which key."""

    model_config = ConfigDict(frozen=True, validate_default=True)

    endpoint_tables: tuple[EndpointSettings, ...] = Field(
        default=(), description="tables of several endpoints, as JSON; [endpoints.NAME] in antrean.toml"
    )
    base_url: BaseUrl = DEFAULT_BASE_URL
    endpoint_name: str | None = Field(
        default=None, description="what jobs are filed under; the base URL unless set"
    )
    api_key: ApiKey | None = None
    api_keys: SecretStr | None = Field(default=None, description="several keys, with commas between them")
    api_key_file: Path | None = Field(default=None, description="read again when it changes")
    api_key_command: KeyCommand | None = Field(default=None, description="a command line that prints the key")
    auth_style: AuthStyle = "auto"

    _address_file: str | None = PrivateAttr(default=None)
    _table: EndpointSettings | None = PrivateAttr(default=None)  # the one that these settings are for
    _unused_tables: str | None = PrivateAttr(default=None)

    @field_validator("api_keys")
    @classmethod
    def _api_keys_fit_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        return None if value is None else SecretStr(",".join(split_keys(value.get_secret_value(), ",")))

    @property
    def endpoint(self) -> str:
        """The identity under which jobs are filed: they are only called by workers with the same.

        With tables it is the base URL of the first, unless it has a name: a table more leaves jobs where they are.
        """
        return self.endpoint_name or parse_address(self.base_url).name

    @property
    def endpoints(self) -> tuple[EndpointSettings, ...]:
        """Where jobs may go: the tables in their order, or the one endpoint of the plain settings."""
        if self._table is not None:
            return (self._table,)
        return self.endpoint_tables or (self._as_endpoint(),)

    def for_endpoint(self, endpoint: EndpointSettings) -> Self:
        """These settings as if this one of `endpoints` were the only one; themselves where it is."""
        if not self.endpoint_tables:
            return self
        told = {name: getattr(endpoint, name) for name in _OF_ENDPOINT}
        of_one = self.model_copy(update={**told, "endpoint_name": endpoint.identity, "endpoint_tables": ()})
        of_one._address_file, of_one._table = endpoint.address_file, endpoint
        return of_one

    def describe_setting(self, name: str) -> str:
        """What a person changes to give this setting of the endpoint another value: a variable, or a table's entry."""
        return PREFIX + name.upper() if self._table is None else self._table.describe_setting(name)

    @property
    def table_prices(self) -> tuple[ModelPrice, ...]:
        """Prices that the table of this endpoint has; none where these settings are not those of a table."""
        return () if self._table is None else self._table.prices

    @property
    def bulk_slot_count(self) -> int:
        """The most calls of bulk jobs at once, over all endpoints."""
        if not self.endpoint_tables:
            return super().bulk_slot_count
        return sum(one.bulk_slot_count for one in self.endpoint_tables)

    @property
    def lone_slot_count(self) -> int:
        """The most slots beside those of bulk jobs, which these never take, over all endpoints."""
        if not self.endpoint_tables:
            return super().lone_slot_count
        return sum(one.lone_slot_count for one in self.endpoint_tables)

    @property
    def first_slots(self) -> tuple[int, int]:
        """Slots for bulk jobs, and those for lone jobs alone, with which a worker begins."""
        if not self.endpoint_tables:
            return super().first_slots
        firsts = [one.first_slots for one in self.endpoint_tables]
        return sum(bulk for bulk, _ in firsts), sum(lone for _, lone in firsts)

    @property
    def unused_tables(self) -> str | None:
        """A sentence that says why tables of endpoints are not used; None where there are none or they are used."""
        return self._unused_tables

    def _as_endpoint(self) -> EndpointSettings:
        # Everything in it is checked already.
        return EndpointSettings.model_construct(
            **{name: getattr(self, name) for name in _OF_ENDPOINT},
            name=self.endpoint,
            identity=self.endpoint,
            address_file=self.address_file,
        )

    @property
    def address_file(self) -> str | None:
        """The file with the base URL, where the key comes from the environment; None where both have one source."""
        return self._address_file

    def without_keys(self) -> Self:
        """These settings for a process that calls no endpoint."""
        tables = tuple(one.without_key() for one in self.endpoint_tables)
        return self.model_copy(update={**dict.fromkeys(KEY_SETTINGS), "endpoint_tables": tables})
