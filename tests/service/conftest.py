"""Shared parts of the service's tests."""

import pytest

from service.db.database import Database


@pytest.fixture
def store(new_store):
    """An empty store of the present schema."""
    database = Database(new_store("sqlite", migrated=True))
    yield database
    database.dispose()
