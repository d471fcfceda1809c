"""Every table, imported so that `Base.metadata` is complete."""

from service.agents.models import Agent, AgentTarget, EnrolmentCode, SigningKey
from service.auth.models import ApiKey
from service.db.base import Base
from service.jobs.models import Job, JobAttempt
from service.latency_models.models import LatencyModel
from service.machines.models import Machine
from service.measurements.models import (
    Kit,
    KitFile,
    KitItem,
    Measurement,
    MeasurementTask,
    UploadedBatch,
)
from service.predictions.models import KernelPricesRow
from service.searches.models import Search, SearchArtifact, SearchEvent, SearchTarget
from service.targets.models import Target
from service.workers.models import WorkerRow

__all__ = [
    "Agent",
    "AgentTarget",
    "ApiKey",
    "Base",
    "EnrolmentCode",
    "Job",
    "JobAttempt",
    "KernelPricesRow",
    "Kit",
    "KitFile",
    "KitItem",
    "LatencyModel",
    "Machine",
    "Measurement",
    "MeasurementTask",
    "Search",
    "SearchArtifact",
    "SearchEvent",
    "SearchTarget",
    "SigningKey",
    "Target",
    "UploadedBatch",
    "WorkerRow",
]
