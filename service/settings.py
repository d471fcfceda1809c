"""Settings, each read from the environment with the prefix ``TAILOR_``."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Defaults make an embedded installation under `home`; a deployment sets the URLs."""

    model_config = SettingsConfigDict(env_prefix="TAILOR_", extra="ignore")

    home: Path = Field(default=Path(".tailor"), description="Folder of everything embedded.")
    database_url: str = Field(default="", description="SQLAlchemy URL; empty: SQLite in `home`.")
    artifacts_url: str = Field(default="", description="fsspec URL; empty: a folder in `home`.")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes a free port.")
    max_body_bytes: int = Field(default=8 * 2**20, gt=0)
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
    attempt_threads: int = Field(default=0, ge=0, description="Torch threads; 0: every core.")
    calibrate: bool = Field(
        default=True, description="A worker times its machine once, so that effort can be told."
    )
    calibration_seconds: float = Field(default=4.0, gt=0, description="Of timing blocks.")
    log_level: str = "INFO"

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
    def datasets_dir(self) -> Path:
        """Where a worker finds the data sets that do not come with the software, by name."""
        return self.datasets or self.home.resolve() / "datasets"

    @property
    def checkpoints_dir(self) -> Path:
        """Where running attempts keep what a later attempt resumes from."""
        return self.home.resolve() / "checkpoints"
