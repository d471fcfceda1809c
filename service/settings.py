"""Settings, each read from the environment with the prefix ``TAILOR_``.

What the environment does not say may stand in a file of the same name, in lower case, in the
folder ``TAILOR_SECRETS``: ``tailor_database_url``, so that no password is in an environment.
"""

import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    SettingsError,
)


def _listed(value: object) -> object:
    """`a, b` as a tuple of its parts."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",") if part.strip())


class Settings(BaseSettings):
    """Defaults make an embedded installation under `home`; a deployment sets the URLs."""

    model_config = SettingsConfigDict(env_prefix="TAILOR_", extra="ignore")

    home: Path = Field(default=Path(".tailor"), description="Folder of everything embedded.")
    database_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite in `home`.")
    artifacts_url: str = Field(default="", description="fsspec URL; empty: a folder in `home`.")
    checkpoints_url: str = Field(
        default="",
        description="fsspec URL that every worker reaches; empty: a folder in `home`.",
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes a free port.")
    max_body_bytes: int = Field(default=8 * 2**20, gt=0, description="Of many items at once.")
    max_small_body_bytes: int = Field(default=2**18, gt=0, description="Of any other request.")
    max_model_bytes: int = Field(
        default=128 * 2**20, gt=0, description="Of an ONNX file that is to be priced."
    )
    job_lease_seconds: float = Field(default=30.0, gt=0)
    task_lease_seconds: float = Field(default=120.0, gt=0)
    agent_offline_seconds: float = Field(default=60.0, gt=0)
    heartbeat_seconds: float = Field(default=20.0, gt=0, description="Between an agent's signs.")
    canary_hours: float = Field(
        default=24.0, gt=0, description="Between two looks at whether a target has drifted."
    )
    enrolment_minutes: float = Field(default=10.0, gt=0)
    max_attempts: int = Field(default=4, gt=0, description="Attempts before a job has failed.")
    worker_poll_seconds: float = Field(default=0.5, gt=0)
    datasets: Path | None = Field(
        default=None, description="Folder with one folder a data set; none: `datasets` in `home`."
    )
    dataset_roots: Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_listed)] = Field(
        default=(), description="Folders of the workers that data sets may be registered from."
    )
    max_dataset_bytes: int = Field(default=2 * 2**30, gt=0, description="Of an upload.")
    max_dataset_unpacked_bytes: int = Field(default=4 * 2**30, gt=0, description="Out of it.")
    max_dataset_files: int = Field(default=500_000, gt=0, description="In an archive.")
    dataset_check_minutes: float = Field(default=60.0, gt=0, description="Then it is given up.")
    worker_offline_seconds: float = Field(default=60.0, gt=0, description="Without a sign of life.")
    stop_grace_seconds: float = Field(
        default=20.0,
        gt=0,
        description="For an attempt that was asked to stop, before it is killed.",
    )
    attempt_threads: int = Field(default=0, ge=0, description="Torch threads; 0: every core.")
    attempt_device: Literal["cpu", "cuda"] = Field(
        default="cpu", description="A worker sets it for each of its attempts."
    )
    attempt_memory_bytes: int = Field(
        default=0, ge=0, description="Likewise: what an attempt may use; 0: no limit."
    )
    calibrate: bool = Field(
        default=True, description="A worker times its machine once, so that effort can be told."
    )
    calibration_seconds: float = Field(default=4.0, gt=0, description="Of timing blocks.")
    public_url: str = Field(
        default="", description="How people reach the API; https:// makes cookies Secure."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_listed)] = Field(
        default=(), description="Host headers that are answered; none: every one."
    )
    requests_per_minute: int = Field(
        default=1200, ge=0, description="Of a key, or of an address without one; 0: no limit."
    )
    agent_requests_per_minute: int = Field(default=6000, ge=0)
    failed_sign_ins_per_minute: int = Field(default=30, ge=0, description="Of an address.")
    session_idle_minutes: float = Field(default=120.0, ge=5)
    session_hours: float = Field(default=12.0, gt=0, description="After which a session ends.")
    account_unfinished_searches: int = Field(
        default=1000, ge=0, description="The most an account may have; 0: no limit."
    )
    account_dataset_bytes: int = Field(default=50 * 2**30, ge=0)
    account_webhooks: int = Field(default=20, ge=0)
    event_poll_seconds: float = Field(
        default=0.25, gt=0, description="Between two looks for events that somebody waits for."
    )
    event_heartbeat_seconds: float = Field(default=10.0, gt=0, le=15)
    event_streams: int = Field(default=200, ge=0, description="That one API serves at once.")
    event_stream_minutes: float = Field(
        default=15.0, gt=0, description="After which a stream ends; clients go on in a new one."
    )
    webhook_allowed_networks: Annotated[
        tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_listed)
    ] = Field(default=(), description="Inner networks that deliveries may go to: 10.1.0.0/16, ...")
    webhook_ports: Annotated[tuple[int, ...], NoDecode, BeforeValidator(_listed)] = Field(
        default=(80, 443, 8080, 8443), description="That deliveries may go to; none: every one."
    )
    webhook_timeout_seconds: float = Field(default=10.0, gt=0, description="Of one attempt.")
    webhook_poll_seconds: float = Field(default=1.0, gt=0)
    webhook_retry_seconds: float = Field(
        default=5.0, gt=0, description="Before the second attempt; doubles with every other."
    )
    webhook_longest_retry_seconds: float = Field(default=7200.0, gt=0)
    webhook_give_up_hours: float = Field(default=24.0, gt=0)
    webhook_failures: int = Field(
        default=20, gt=0, description="In a row, over `webhook_failing_hours`: it is switched off."
    )
    webhook_failing_hours: float = Field(default=12.0, ge=0)
    webhook_retention_days: float = Field(default=30.0, gt=0, description="Of the delivery log.")
    migrate: bool = Field(
        default=True,
        description="The API brings the schema up to date; else `tailor admin migrate`.",
    )
    open_metrics: bool = Field(default=False, description="/metrics asks for no key.")
    free_disk_bytes: int = Field(
        default=512 * 2**20, ge=0, description="With less, the API says that it is not ready."
    )
    idempotency_hours: float = Field(
        default=168.0, ge=24, description="For which an Idempotency-Key gives the same search."
    )
    artifact_grace_hours: float = Field(
        default=24.0, gt=0, description="`tailor admin gc` leaves younger files alone."
    )
    log_level: str = "INFO"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic names them
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the files of ``TAILOR_SECRETS``."""
        folder = os.environ.get("TAILOR_SECRETS", "")
        if not folder:
            return init_settings, env_settings
        if not Path(folder).is_dir():  # else it would start on an empty store of its own
            raise SettingsError(f"TAILOR_SECRETS is {folder!r}, which is not a folder")
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, folder)

    @property
    def resolved_database_url(self) -> str:
        """The database to use, embedded or given."""
        if self.database_url:
            return self.database_url
        return f"sqlite:///{self.home.resolve() / 'tailor.db'}"

    @property
    def resolved_artifacts_url(self) -> str:
        """The artifact store to use, embedded or given."""
        return self.artifacts_url or f"file://{self.home.resolve() / 'artifacts'}"

    @property
    def is_https(self) -> bool:
        """Whether people reach the API by https."""
        return self.public_url.startswith("https://")

    @property
    def datasets_dir(self) -> Path:
        """Where a worker finds the data sets that do not come with the software, by name."""
        return self.datasets or self.home.resolve() / "datasets"

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoints are when `checkpoints_url` names no other place."""
        return self.home.resolve() / "checkpoints"

    @property
    def resolved_checkpoints_url(self) -> str:
        """Where running attempts keep what a later attempt resumes from."""
        return self.checkpoints_url or f"file://{self.checkpoints_dir}"
