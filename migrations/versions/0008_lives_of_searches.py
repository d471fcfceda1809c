"""Searches with tags, priorities, several targets, and others that they come from."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_ID = sa.String(length=40)

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    # expand
    op.add_column("searches", sa.Column("kind", sa.Text(), nullable=True))
    op.add_column("searches", sa.Column("tags", _JSON, nullable=True))
    op.add_column("searches", sa.Column("priority", sa.Integer(), nullable=True))
    op.add_column("searches", sa.Column("parent_id", _ID, nullable=True))
    op.add_column("searches", sa.Column("body_sha256", sa.Text(), nullable=True))
    op.add_column("searches", sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "search_targets",
        sa.Column("search_id", _ID, nullable=False),
        sa.Column("target_id", _ID, nullable=False),
        sa.Column("latency_model_id", _ID, nullable=True),
        sa.ForeignKeyConstraint(
            ["search_id"], ["searches.id"], name=op.f("fk_search_targets_search_id_searches")
        ),
        sa.ForeignKeyConstraint(
            ["target_id"], ["targets.id"], name=op.f("fk_search_targets_target_id_targets")
        ),
        sa.ForeignKeyConstraint(
            ["latency_model_id"],
            ["latency_models.id"],
            name=op.f("fk_search_targets_latency_model_id_latency_models"),
        ),
        sa.PrimaryKeyConstraint("search_id", "target_id", name=op.f("pk_search_targets")),
    )
    op.create_index(
        op.f("ix_search_targets_target_id_search_id"), "search_targets", ["target_id", "search_id"]
    )
    # backfill
    op.execute("UPDATE searches SET kind = 'search', tags = '{}', priority = 0")
    op.execute(
        "INSERT INTO search_targets (search_id, target_id, latency_model_id) "
        "SELECT id, target_id, latency_model_id FROM searches"
    )
    # enforce
    with op.batch_alter_table("searches", schema=None) as batch:
        batch.alter_column("kind", existing_type=sa.Text(), nullable=False)
        batch.alter_column("tags", existing_type=_JSON, nullable=False)
        batch.alter_column("priority", existing_type=sa.Integer(), nullable=False)
        batch.create_foreign_key(
            op.f("fk_searches_parent_id_searches"), "searches", ["parent_id"], ["id"]
        )
        batch.create_index(op.f("ix_searches_parent_id"), ["parent_id"])
        batch.create_index(op.f("ix_searches_status_id"), ["status", "id"])
        batch.create_index(op.f("ix_searches_tags"), ["tags"], postgresql_using="gin")


def downgrade() -> None:
    """Undo."""
    op.drop_table("search_targets")
    with op.batch_alter_table("searches", schema=None) as batch:
        batch.drop_index(op.f("ix_searches_tags"))
        batch.drop_index(op.f("ix_searches_status_id"))
        batch.drop_index(op.f("ix_searches_parent_id"))
        batch.drop_constraint(op.f("fk_searches_parent_id_searches"), type_="foreignkey")
        for name in ("archived_at", "body_sha256", "parent_id", "priority", "tags", "kind"):
            batch.drop_column(name)
