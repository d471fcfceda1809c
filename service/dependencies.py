"""What routes ask for: settings, the artifact store, and one transaction a request."""

from collections.abc import Iterator
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Query, Request
from sqlalchemy.orm import Session

from service.agents.signing import Signer
from service.artifacts import ArtifactStore
from service.audit.record import record
from service.db.database import Database
from service.schemas import Text
from service.settings import Settings


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _artifacts(request: Request) -> ArtifactStore:
    artifacts: ArtifactStore = request.app.state.artifacts
    return artifacts


def _signer(request: Request) -> Signer:
    signer: Signer = request.app.state.signer
    return signer


def _file_readers(request: Request) -> CapacityLimiter:
    readers: CapacityLimiter = request.app.state.file_readers
    return readers


def _read_session(database: Annotated[Database, Depends(_database)]) -> Iterator[Session]:
    with database.reading() as session:
        yield session


def _write_session(
    request: Request, database: Annotated[Database, Depends(_database)]
) -> Iterator[Session]:
    with database.transaction() as session:
        yield session
        record(session, request)


Cursor = Annotated[Text | None, Query(max_length=80, description="Where the page starts.")]
Limit = Annotated[int, Query(ge=1, le=200, description="Items a page.")]
CurrentSettings = Annotated[Settings, Depends(_settings)]
CurrentDatabase = Annotated[Database, Depends(_database)]
CurrentSigner = Annotated[Signer, Depends(_signer)]
FileReaders = Annotated[CapacityLimiter, Depends(_file_readers)]
Artifacts = Annotated[ArtifactStore, Depends(_artifacts)]
# scope "function": the transaction commits before the answer is sent, so what a client was
# told is stored is stored
ReadSession = Annotated[Session, Depends(_read_session, scope="function")]
WriteSession = Annotated[Session, Depends(_write_session, scope="function")]
