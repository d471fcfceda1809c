"""Accounts: who owns keys, searches and agents; sessions and the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply: every key of before becomes an account of its own, which owns what it made."""
    # expand
    op.add_column("api_keys", sa.Column("account", sa.Text(), nullable=True))
    op.add_column("searches", sa.Column("owner", sa.Text(), nullable=True))
    # backfill
    op.execute("UPDATE api_keys SET account = id")
    op.execute("UPDATE searches SET owner = owner_key_id")
    # enforce
    with op.batch_alter_table("api_keys", schema=None) as batch:
        batch.alter_column("account", existing_type=sa.Text(), nullable=False)
    with op.batch_alter_table("searches", schema=None) as batch:
        batch.alter_column("owner", existing_type=sa.Text(), nullable=False)
        batch.drop_constraint(op.f("uq_searches_owner_key_id_idempotency_key"), type_="unique")
        batch.create_unique_constraint(
            op.f("uq_searches_owner_idempotency_key"), ["owner", "idempotency_key"]
        )
        batch.create_index(op.f("ix_searches_owner_id"), ["owner", "id"])


def downgrade() -> None:
    """Undo."""
    with op.batch_alter_table("searches", schema=None) as batch:
        batch.drop_index(op.f("ix_searches_owner_id"))
        batch.drop_constraint(op.f("uq_searches_owner_idempotency_key"), type_="unique")
        batch.create_unique_constraint(
            op.f("uq_searches_owner_key_id_idempotency_key"), ["owner_key_id", "idempotency_key"]
        )
        batch.drop_column("owner")
    with op.batch_alter_table("api_keys", schema=None) as batch:
        batch.drop_column("account")
