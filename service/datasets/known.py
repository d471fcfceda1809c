"""Which data sets a search can name, in plain Python."""

from dataclasses import dataclass
from typing import Self

from sqlalchemy.orm import Session

from search_core.data.catalogue import DatasetInfo, datasets
from search_core.errors import UnknownDatasetError
from service.datasets.models import DatasetRow
from service.datasets.repository import find_for_use, names_of
from service.errors import InvalidRequestError

_NAMED = 20
"""How many of an account's data sets an error names."""


@dataclass(frozen=True)
class DatasetFacts:
    """What can be said of a data set without loading it, and where it lies.

    Attributes:
        owner: account whose data set it is; empty for a known one that nobody registered.
        dataset_id: None for such a one.
        source, place: as in `DatasetRow`.
        form: of an upload, as the check saw it: `npz`, `zip` or `tar.gz`.
        digest: what its content must have when it is loaded; empty where nobody has looked.
    """

    name: str
    channels: int
    resolution_px: int
    n_classes: int
    n_train: int
    n_test: int
    source: str
    place: str
    owner: str = ""
    dataset_id: str | None = None
    form: str | None = None
    resize_px: int | None = None
    digest: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, side in pixels and number of classes."""
        return self.channels, self.resolution_px, self.n_classes

    @classmethod
    def of_known(cls, info: DatasetInfo) -> Self:
        """Those of a known set that nobody has registered."""
        return cls(
            name=info.name,
            channels=info.channels,
            resolution_px=info.resolution_px,
            n_classes=info.n_classes,
            n_train=info.n_train,
            n_test=info.n_test,
            source="builtin",
            place=info.name,
        )

    @classmethod
    def of_row(cls, row: DatasetRow) -> Self:
        """Those of a data set that is ready."""
        facts = row.facts or {}
        return cls(
            name=row.name,
            channels=facts["channels"],
            resolution_px=facts["resolution_px"],
            n_classes=facts["n_classes"],
            n_train=facts["n_train"],
            n_test=facts["n_test"],
            source=row.source,
            place=row.place,
            owner=row.owner,
            dataset_id=row.id,
            form=facts.get("form"),
            resize_px=row.resize_px,
            digest=facts["digest"],
        )


def find_dataset(session: Session, account: str, name: str) -> DatasetFacts:
    """The data set that an account means by a name or an id; its own come before the known ones.

    It cannot be deleted before the transaction ends.

    Raises:
        UnknownDatasetError: there is none; naming those there are.
        InvalidRequestError: it is not checked yet, or was rejected; saying what to do.
    """
    row = find_for_use(session, account, name)
    if row is None:
        known = {info.name: info for info in datasets()}
        if name in known:
            return DatasetFacts.of_known(known[name])
        own = names_of(session, account, _NAMED)
        raise UnknownDatasetError(
            f"no data set is called {name!r}; known: {', '.join([*own, *known])}. Register one "
            "of your own: `tailor datasets upload FILE`, or POST /v1/datasets"
        )
    if row.status == "checking":
        raise InvalidRequestError(
            f"data set {row.name} is still being checked, for which a worker has to run; try "
            "again when GET /v1/datasets says that it is ready",
            field="dataset",
        )
    if row.status == "rejected":
        raise InvalidRequestError(
            f"data set {row.name} was rejected: {row.reason}", field="dataset"
        )
    return DatasetFacts.of_row(row)
