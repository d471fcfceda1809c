"""Data sets as attempts train on them; loads torch."""

from pathlib import Path
from typing import cast

from search_core.data.dataset import Dataset
from search_core.data.load import load_dataset
from search_core.errors import DatasetChecksumError, DatasetError
from service.artifacts import ArtifactStore
from service.datasets.archives import Form
from service.datasets.cache import materialised
from service.datasets.known import DatasetFacts
from service.datasets.places import allowed
from service.errors import InvalidRequestError, NotFoundError
from service.settings import Settings


def open_dataset(settings: Settings, artifacts: ArtifactStore, facts: DatasetFacts) -> Dataset:
    """The data set, with the content that its check has seen.

    Raises:
        DatasetError: its files are gone or damaged, or hold other images than they did.
    """
    if facts.source == "builtin":
        return load_dataset(facts.place, settings.datasets_dir / facts.place)
    data = load_dataset(
        facts.name, _root(settings, artifacts, facts), resolution_px=facts.resize_px
    )
    if data.digest != facts.digest:
        raise DatasetChecksumError(
            f"the images or labels of data set {facts.name} have changed since it was checked; "
            "delete it and register it again",
            facts.digest,
            data.digest,
        )
    return data


def _root(settings: Settings, artifacts: ArtifactStore, facts: DatasetFacts) -> Path:
    try:
        if facts.source == "upload":
            return materialised(settings, artifacts, facts.place, cast("Form", facts.form))
        return allowed(facts.place, settings.dataset_roots)
    except (InvalidRequestError, NotFoundError) as error:
        raise DatasetError(f"data set {facts.name}: {error}") from error
