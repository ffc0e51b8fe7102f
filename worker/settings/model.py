"""Every setting of antrean: one frozen model. `loading` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from schemas.sqlite_address import format_sqlite_address, is_sqlite_address, parse_sqlite_path
from worker.errors import SettingsError
from worker.settings.database import PostgresqlAddress, parse_postgresql
from worker.settings.destination import DestinationSettings
from worker.settings.endpoints import KEY_SETTINGS, dump_endpoints
from worker.settings.postgresql import check_postgresql
from worker.settings.secrets import fill_in_password, read_password
from worker.settings.sources import PREFIX
from worker.settings.values import (
    DATABASE_FILES,
    absolute_file,
    absolute_path,
    check_broker_url,
    check_home,
    check_text,
    expanded_path,
    holds_path,
    shown,
)

SIMULATION = "simulation"
_SECRET_FILES = ("api_key_file", "database_password_file", "broker_password_file", "flower_password_file")
IN_STACK = "ANTREAN_IN_STACK"  # set for children of an embedded stack: they must not attach to it

# No number may be so large that a timer, a socket or a column cannot hold it.
_LONGEST_S = 10 * 365 * 86_400
Seconds = Annotated[float, Field(gt=0, le=_LONGEST_S, allow_inf_nan=False)]
Patience = Annotated[float, Field(ge=0, le=_LONGEST_S, allow_inf_nan=False)]
Timeout = Annotated[
    float, Field(gt=0, le=1_000_000, allow_inf_nan=False)
]  # poll() counts milliseconds in 32 bits
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Settings(DestinationSettings):
    """What one process of antrean was told. Durations are seconds, sizes are bytes."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, validate_default=True)

    # A call: where it goes is in DestinationSettings
    api_key_command_timeout_s: Timeout = 10.0
    model: str | None = None
    allow_zero_temperature: bool = False
    upstream_priority: Literal["off", "vllm"] = Field(
        default="off",
        description="vllm: tell the endpoint which calls come first, as its `priority` (lower is earlier)",
    )
    prices_file: Path | None = Field(
        default=None, description="prices of your own, which win over the bundled"
    )
    connect_timeout_s: Timeout = 10.0
    read_timeout_s: Timeout = 300.0
    total_timeout_s: Timeout | None = Field(
        default=None, description="whole-call deadline; read_timeout_s + 60 unless set"
    )
    max_response_bytes: Annotated[int, Field(ge=1024, le=1 << 40)] = 32 * 1024 * 1024

    # Where things are kept
    home: Path = Path(".antrean")
    # Before the addresses, which take their passwords from these files.
    database_password_file: Path | None = Field(default=None, description="the password for database_url")
    broker_password_file: Path | None = Field(default=None, description="the password for broker_url")
    database_url: SecretStr | None = None
    broker_url: SecretStr | None = None
    sqlite_synchronous: Literal["full", "normal"] = "full"

    # The worker: its slots are in SlotSettings
    grace_s: Patience = 30.0
    lease_s: Seconds = 30.0
    beat_s: Seconds | None = Field(default=None, description="lease_s / 6 unless set")
    relay_interval_s: Seconds = 0.25
    republish_after_s: Seconds = 120.0
    group_window_s: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.04
    max_message_bytes: Annotated[int, Field(ge=64 * 1024, le=1 << 40)] = Field(
        default=16 * 1024 * 1024, description="a larger message of another program is refused unread"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    # Flower
    flower_address: str = "127.0.0.1"
    flower_port: Annotated[int, Field(ge=0, le=65535)] = 5555
    flower_auth: bool = Field(default=True, description="ask for a password")
    flower_password_file: Path | None = Field(default=None, description="the password for Flower's page")
    flower_password: SecretStr | None = Field(
        default=None,
        description="made once and kept in the home folder unless set",
    )

    # Retry
    max_attempts: Count = 6
    bad_response_max_attempts: Count = 4
    backoff_base_s: Seconds = 1.0
    backoff_cap_s: Seconds = 120.0
    retry_after_cap_s: Seconds = 3600.0
    gate_patience_s: Patience = 3600.0
    max_solo_losses: Count = 3

    @field_validator("*", mode="before")
    @classmethod
    def _text_is_text(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name is not None and not holds_path(info.field_name, value):  # paths are bytes
            check_text(value)
        return value

    @field_validator("database_url", "broker_url", mode="before")
    @classmethod
    def _password_is_filled_in(cls, value: object, info: ValidationInfo) -> object:
        file = info.data.get(f"{info.field_name}".replace("_url", "_password_file"))
        if value is None or file is None:
            return value
        url = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        return fill_in_password(url, read_password(file))

    @field_validator("flower_password", mode="before")
    @classmethod
    def _flower_password_is_read(cls, value: object, info: ValidationInfo) -> object:
        file = info.data.get("flower_password_file")
        return value if file is None else read_password(file)

    @field_validator("broker_url")
    @classmethod
    def _broker_url_is_redis(cls, value: SecretStr | None) -> SecretStr | None:
        return None if value is None else SecretStr(check_broker_url(value.get_secret_value()))

    @field_validator("database_url")
    @classmethod
    def _database_url_is_known(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        address = value.get_secret_value()
        if is_sqlite_address(address):
            # Absolute: a worker has a folder of its own.
            return SecretStr(format_sqlite_address(str(absolute_path(Path(parse_sqlite_path(address))))))
        parsed = parse_postgresql(address)
        check_postgresql(parsed)
        files = {n: absolute_file(str(v)) for n, v in parsed.parameters.items() if n in DATABASE_FILES}
        return SecretStr(parsed.with_parameters(files).render())

    @field_validator(
        "home",
        "api_key_file",
        "prices_file",
        "database_password_file",
        "broker_password_file",
        "flower_password_file",
    )
    @classmethod
    def _path_is_absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else expanded_path(value)

    @field_validator("home")
    @classmethod
    def _home_is_not_the_systems(cls, value: Path) -> Path:
        return check_home(value)

    @model_validator(mode="after")
    def _values_fit_each_other(self) -> Settings:
        keys = [PREFIX + name.upper() for name in KEY_SETTINGS if getattr(self, name) is not None]
        if len(keys) > 1:
            both = "both" if len(keys) == 2 else "all"
            raise ValueError(f"{', '.join(keys[:-1])} and {keys[-1]} are {both} set: keep one")
        for name in ("database", "broker"):
            if getattr(self, f"{name}_password_file") and not getattr(self, f"{name}_url"):
                setting = PREFIX + name.upper()
                raise ValueError(f"{setting}_PASSWORD_FILE is of use with {setting}_URL only")
        if self.beat_interval_s * 2 > self.lease_s:
            raise ValueError("ANTREAN_BEAT_S must be at most half of ANTREAN_LEASE_S")
        if self.backoff_cap_s < self.backoff_base_s:
            raise ValueError("ANTREAN_BACKOFF_CAP_S must not be below ANTREAN_BACKOFF_BASE_S")
        return self

    @property
    def secret_files(self) -> tuple[Path, ...]:
        """The files of keys and passwords."""
        named = [getattr(self, name) for name in _SECRET_FILES]
        named += [one.api_key_file for one in self.endpoint_tables]
        return tuple(file for file in named if file is not None)

    @property
    def beat_interval_s(self) -> float:
        """Seconds between two heartbeats."""
        return self.lease_s / 6 if self.beat_s is None else self.beat_s

    @property
    def deadline_s(self) -> float:
        """The total deadline of one call, in seconds."""
        return self.read_timeout_s + 60.0 if self.total_timeout_s is None else self.total_timeout_s

    @property
    def is_broker_embedded(self) -> bool:
        """Whether antrean brings its own broker, because no address of one is set."""
        return self.broker_url is None

    @property
    def ledger_address(self) -> Path | PostgresqlAddress:
        """Where the ledger is: an SQLite file, in the home folder unless told otherwise, or a PostgreSQL."""
        if self.database_url is None:
            return self.home / "antrean.db"
        address = self.database_url.get_secret_value()
        if is_sqlite_address(address):
            return Path(parse_sqlite_path(address))
        return parse_postgresql(address)

    @property
    def spool_folder(self) -> Path:
        """The folder in which workers keep paid answers while the database is away."""
        return self.home / "spool"

    def for_simulation(self, base_url: str, api_key: str) -> Settings:
        """These settings turned to the simulator, with a home (and so a ledger and a broker) of its own."""
        simulated = self.model_copy(
            update={
                "base_url": base_url,
                "endpoint_name": SIMULATION,
                "endpoint_tables": (),
                "api_key": SecretStr(api_key),
                "api_keys": None,
                "api_key_file": None,
                "api_key_command": None,
                "auth_style": "bearer",
                "home": self.home / SIMULATION,
                "database_password_file": None,
                "broker_password_file": None,
                "database_url": None,
                "broker_url": None,
            }
        )
        simulated._address_file = simulated._table = simulated._unused_tables = None
        return simulated

    def require_lasting_files(self) -> None:
        """Raises SettingsError if a file of a setting is a pipe: a child process reads it again, and finds nothing."""
        names = [name for name in type(self).model_fields if name.endswith("_file")]
        named = [(f"{PREFIX}{name.upper()}", getattr(self, name)) for name in names]
        named += [(one.describe_setting("api_key_file"), one.api_key_file) for one in self.endpoint_tables]
        problems = [
            f"{name}: {shown(file)} is no file that several processes can read: save it to one"
            for name, file in named
            if file is not None and file.exists() and not file.is_file()
        ]
        if problems:
            raise SettingsError(problems)

    def as_environment(self) -> dict[str, str]:
        """These settings as environment variables, for a child process. Holds secrets: never log it."""
        env: dict[str, str] = {}
        for name in type(self).model_fields:
            if name == "endpoint_tables":
                continue
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            if value is not None:
                env[PREFIX + name.upper()] = str(value)
        if self.endpoint_tables:
            env[f"{PREFIX}ENDPOINT_TABLES"] = dump_endpoints(self.endpoint_tables)
            env[f"{PREFIX}BASE_URL"] = ""  # one that is set means that one alone
            env |= {
                one.api_key_env: one.api_key.get_secret_value()
                for one in self.endpoint_tables
                if one.api_key_env is not None and one.api_key is not None
            }
        return env
