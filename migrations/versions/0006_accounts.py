"""Accounts: who owns keys, searches and agents; sessions and the audit log."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

_ID = sa.String(length=40)
_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_TIME = sa.DateTime(timezone=True)

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply: every key of before becomes an account of its own, which owns what it made."""
    # expand
    op.add_column("api_keys", sa.Column("account", sa.Text(), nullable=True))
    op.add_column("searches", sa.Column("owner", sa.Text(), nullable=True))
    op.add_column("agents", sa.Column("owner", sa.Text(), nullable=True))
    for name in ("expires_at", "last_used_at", "previous_expires_at"):
        op.add_column("api_keys", sa.Column(name, _TIME, nullable=True))
    op.add_column("api_keys", sa.Column("previous_hash", sa.Text(), nullable=True))
    op.add_column("api_keys", sa.Column("created_by", _ID, nullable=True))
    # backfill
    op.execute("UPDATE api_keys SET account = id")
    op.execute("UPDATE searches SET owner = owner_key_id")
    # an agent was made in the transaction that used its code up, right after it
    op.execute(
        "UPDATE agents SET owner = coalesce((SELECT created_by FROM enrolment_codes "
        "WHERE used_at <= agents.created_at ORDER BY used_at DESC LIMIT 1), '')"
    )
    # enforce
    with op.batch_alter_table("api_keys", schema=None) as batch:
        batch.alter_column("account", existing_type=sa.Text(), nullable=False)
        batch.create_unique_constraint(op.f("uq_api_keys_previous_hash"), ["previous_hash"])
        batch.create_foreign_key(
            op.f("fk_api_keys_created_by_api_keys"), "api_keys", ["created_by"], ["id"]
        )
    with op.batch_alter_table("agents", schema=None) as batch:
        batch.alter_column("owner", existing_type=sa.Text(), nullable=False)
    with op.batch_alter_table("searches", schema=None) as batch:
        batch.alter_column("owner", existing_type=sa.Text(), nullable=False)
        batch.drop_constraint(op.f("uq_searches_owner_key_id_idempotency_key"), type_="unique")
        batch.create_unique_constraint(
            op.f("uq_searches_owner_idempotency_key"), ["owner", "idempotency_key"]
        )
        batch.create_index(op.f("ix_searches_owner_id"), ["owner", "id"])
    _create_sessions()
    _create_audit_log()


def _create_sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", _ID, nullable=False),
        sa.Column("key_id", _ID, nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("last_used_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.id"], name=op.f("fk_sessions_key_id_api_keys")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sessions")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_sessions_token_hash")),
    )
    op.create_index(op.f("ix_sessions_key_id"), "sessions", ["key_id"])
    op.create_index(op.f("ix_sessions_expires_at"), "sessions", ["expires_at"])


def _create_audit_log() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("id", _ID, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("key_id", _ID, nullable=False),
        sa.Column("key_name", sa.Text(), nullable=False),
        sa.Column("session_id", _ID, nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("parameters", _JSON, nullable=False),
        sa.Column("object_id", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.id"], name=op.f("fk_audit_entries_key_id_api_keys")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entries")),
    )
    for column in ("account", "key_id", "object_id"):
        name = op.f(f"ix_audit_entries_{column}_id")
        op.create_index(name, "audit_entries", [column, "id"])
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_entries_stay BEFORE UPDATE OR DELETE ON audit_entries "
            "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
    else:
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_entries_no_{change.lower()} BEFORE {change} "
                "ON audit_entries BEGIN SELECT RAISE(ABORT, 'audit_entries is append-only'); END"
            )


def downgrade() -> None:
    """Undo."""
    op.drop_table("audit_entries")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_change()")
    op.drop_table("sessions")
    with op.batch_alter_table("searches", schema=None) as batch:
        batch.drop_index(op.f("ix_searches_owner_id"))
        batch.drop_constraint(op.f("uq_searches_owner_idempotency_key"), type_="unique")
        batch.create_unique_constraint(
            op.f("uq_searches_owner_key_id_idempotency_key"), ["owner_key_id", "idempotency_key"]
        )
        batch.drop_column("owner")
    with op.batch_alter_table("agents", schema=None) as batch:
        batch.drop_column("owner")
    with op.batch_alter_table("api_keys", schema=None) as batch:
        batch.drop_constraint(op.f("fk_api_keys_created_by_api_keys"), type_="foreignkey")
        batch.drop_constraint(op.f("uq_api_keys_previous_hash"), type_="unique")
        for name in (
            "created_by",
            "previous_hash",
            "previous_expires_at",
            "last_used_at",
            "expires_at",
            "account",
        ):
            batch.drop_column(name)
