"""Workers with slots, and jobs that say what they need and whose they are."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_TIME = sa.DateTime(timezone=True)
_IN_QUEUE = sa.text("status = 'queued' AND blocked_on IS NULL")
_RUNNING = sa.text("status = 'running'")
_INDEXES = (
    ("ix_jobs_queue", ["owner", "priority", "created_at", "id"], _IN_QUEUE),
    ("ix_jobs_queue_needs", ["needs"], _IN_QUEUE),
    ("ix_jobs_running", ["owner"], _RUNNING),
)

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply: a search's job belongs to who owns the search, any other to nobody."""
    # expand
    op.add_column("jobs", sa.Column("owner", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("needs", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("stop_requested_at", _TIME, nullable=True))
    op.add_column("jobs", sa.Column("queue_deadline", _TIME, nullable=True))
    op.add_column("jobs", sa.Column("claimed_at", _TIME, nullable=True))
    op.add_column("job_attempts", sa.Column("resources", _JSON, nullable=True))
    # backfill
    op.execute(
        "UPDATE jobs SET needs = '{}', owner = coalesce("
        "(SELECT owner FROM searches WHERE searches.id = jobs.subject_id), '')"
    )
    op.execute("UPDATE job_attempts SET resources = '{}'")
    # enforce
    with op.batch_alter_table("jobs", schema=None) as batch:
        batch.alter_column("owner", existing_type=sa.Text(), nullable=False)
        batch.alter_column("needs", existing_type=sa.Text(), nullable=False)
        batch.create_index(op.f("ix_jobs_worker"), ["worker"])
        batch.create_index(op.f("ix_jobs_owner_claimed_at"), ["owner", "claimed_at"])
        batch.create_index(op.f("ix_jobs_queue_deadline"), ["queue_deadline"])
    for name, columns, where in _INDEXES:
        op.create_index(name, "jobs", columns, postgresql_where=where, sqlite_where=where)
    with op.batch_alter_table("job_attempts", schema=None) as batch:
        batch.alter_column("resources", existing_type=_JSON, nullable=False)
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("resources", _JSON, nullable=False),
        sa.Column("labels", _JSON, nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("hand_back", sa.Boolean(), nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("seen_at", _TIME, nullable=False),
        sa.Column("stopped_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )


def downgrade() -> None:
    """Undo."""
    op.drop_table("workers")
    with op.batch_alter_table("job_attempts", schema=None) as batch:
        batch.drop_column("resources")
    for name, *_ in _INDEXES:
        op.drop_index(name, "jobs")
    with op.batch_alter_table("jobs", schema=None) as batch:
        batch.drop_index(op.f("ix_jobs_queue_deadline"))
        batch.drop_index(op.f("ix_jobs_owner_claimed_at"))
        batch.drop_index(op.f("ix_jobs_worker"))
        for name in ("claimed_at", "queue_deadline", "stop_requested_at", "needs", "owner"):
            batch.drop_column(name)
