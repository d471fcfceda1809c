"""Kits that stop measuring once their networks are known well enough."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply; kits that are there measure everything."""
    op.add_column("kits", sa.Column("until_half_width", sa.Double(), nullable=True))


def downgrade() -> None:
    """Undo."""
    with op.batch_alter_table("kits", schema=None) as batch:
        batch.drop_column("until_half_width")
