"""Every table, imported so that `Base.metadata` is complete."""

from service.agents.models import Agent, AgentTarget, EnrolmentCode, SigningKey
from service.audit.models import AuditEntry
from service.auth.models import ApiKey
from service.datasets.models import DatasetRow
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
from service.sessions.models import SessionRow
from service.targets.models import Target
from service.webhooks.models import Webhook, WebhookDelivery
from service.workers.models import WorkerRow

__all__ = [
    "Agent",
    "AgentTarget",
    "ApiKey",
    "AuditEntry",
    "Base",
    "DatasetRow",
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
    "SessionRow",
    "SigningKey",
    "Target",
    "UploadedBatch",
    "Webhook",
    "WebhookDelivery",
    "WorkerRow",
]
