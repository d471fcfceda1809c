"""Versions of latency models, and prices of kernels."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_ID = sa.String(length=40)

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_NUMBER_BY_AGE = """
UPDATE latency_models SET version = (
    SELECT count(*) FROM latency_models AS other
    WHERE other.target_id = latency_models.target_id
    AND other.space_digest = latency_models.space_digest
    AND (other.created_at < latency_models.created_at
        OR (other.created_at = latency_models.created_at AND other.id <= latency_models.id))
)
"""


def upgrade() -> None:
    """Apply; models that are there are numbered by age."""
    op.add_column("latency_models", sa.Column("version", sa.Integer(), nullable=True))
    op.execute(_NUMBER_BY_AGE)
    with op.batch_alter_table("latency_models", schema=None) as batch:
        batch.alter_column("version", existing_type=sa.Integer(), nullable=False)
        batch.create_unique_constraint(
            op.f("uq_latency_models_target_id_space_digest_version"),
            ["target_id", "space_digest", "version"],
        )
    op.create_table(
        "kernel_prices",
        sa.Column("target_id", _ID, nullable=False),
        sa.Column("document", _JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["target_id"], ["targets.id"], name=op.f("fk_kernel_prices_target_id_targets")
        ),
        sa.PrimaryKeyConstraint("target_id", name=op.f("pk_kernel_prices")),
    )


def downgrade() -> None:
    """Undo."""
    op.drop_table("kernel_prices")
    with op.batch_alter_table("latency_models", schema=None) as batch:
        batch.drop_constraint(
            op.f("uq_latency_models_target_id_space_digest_version"), type_="unique"
        )
        batch.drop_column("version")
