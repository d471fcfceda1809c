"""Agents of several targets, kits that share tasks, graded measurements, signed tasks."""

import hashlib
import json

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_ID = sa.String(length=40)

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    _targets({"clock_state": "unmanaged"})
    _agents()
    _kits()
    _measurements()
    op.create_table(
        "signing_keys",
        sa.Column("id", _ID, nullable=False),
        sa.Column("private_key", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signing_keys")),
    )
    op.add_column("enrolment_codes", sa.Column("search_space", sa.Text(), nullable=True))
    op.add_column("latency_models", sa.Column("stale", _JSON, nullable=True))


def _targets(added: dict[str, str], removed: tuple[str, ...] = ()) -> None:
    """Change what every profile holds; its digest follows."""
    targets = sa.table(
        "targets", sa.column("id"), sa.column("profile", _JSON), sa.column("profile_digest")
    )
    connection = op.get_bind()
    for row in connection.execute(sa.select(targets)).all():
        profile = {k: v for k, v in {**added, **row.profile}.items() if k not in removed}
        canonical = json.dumps(profile, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        connection.execute(
            targets.update()
            .where(targets.c.id == row.id)
            .values(profile=profile, profile_digest=digest)
        )


def _agents() -> None:
    op.create_table(
        "agent_targets",
        sa.Column("agent_id", _ID, nullable=False),
        sa.Column("target_id", _ID, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f("fk_agent_targets_agent_id_agents")
        ),
        sa.ForeignKeyConstraint(
            ["target_id"], ["targets.id"], name=op.f("fk_agent_targets_target_id_targets")
        ),
        sa.PrimaryKeyConstraint("agent_id", "target_id", name=op.f("pk_agent_targets")),
    )
    op.create_index(op.f("ix_agent_targets_target_id"), "agent_targets", ["target_id"])
    op.execute(
        "INSERT INTO agent_targets (agent_id, target_id, position) "
        "SELECT id, target_id, 0 FROM agents"
    )
    with op.batch_alter_table("agents", schema=None) as batch:
        for name in ("journal_batches", "accepted", "rejected", "flagged"):
            batch.add_column(sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
        batch.add_column(
            sa.Column("draining", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        batch.add_column(sa.Column("activity", sa.Text(), nullable=False, server_default=""))
        batch.drop_index(op.f("ix_agents_target_id"))
        batch.drop_constraint(op.f("fk_agents_target_id_targets"), type_="foreignkey")
        batch.drop_column("target_id")
    with op.batch_alter_table("agents", schema=None) as batch:
        for name in ("journal_batches", "accepted", "rejected", "flagged", "draining", "activity"):
            batch.alter_column(name, server_default=None)


def _kits() -> None:
    op.create_table(
        "kit_items",
        sa.Column("kit_id", _ID, nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["kit_id"], ["kits.id"], name=op.f("fk_kit_items_kit_id_kits")),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["measurement_tasks.id"],
            name=op.f("fk_kit_items_task_id_measurement_tasks"),
        ),
        sa.PrimaryKeyConstraint("kit_id", "subject", name=op.f("pk_kit_items")),
    )
    op.create_index(op.f("ix_kit_items_task_id"), "kit_items", ["task_id"])
    op.execute(
        "INSERT INTO kit_items (kit_id, subject, task_id, role) "
        "SELECT kit_id, subject, id, "
        "CASE WHEN subject LIKE 'network:%' THEN 'calibration' ELSE 'block' END "
        "FROM measurement_tasks WHERE kit_id IS NOT NULL"
    )
    op.create_table(
        "kit_files",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("precision", sa.Text(), nullable=False),
        sa.Column("batch", sa.Integer(), nullable=False),
        sa.Column("builder_version", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("n_bytes", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint(
            "subject", "precision", "batch", "builder_version", name=op.f("pk_kit_files")
        ),
    )
    op.create_index(op.f("ix_kit_files_sha256"), "kit_files", ["sha256"])
    with op.batch_alter_table("measurement_tasks", schema=None) as batch:
        batch.add_column(sa.Column("purpose", sa.Text(), nullable=True))
        batch.add_column(sa.Column("only_agent_id", _ID, nullable=True))
        batch.add_column(sa.Column("priority", sa.Double(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE measurement_tasks SET purpose = "
        "CASE WHEN search_id IS NOT NULL THEN 'search' ELSE 'kit' END"
    )
    with op.batch_alter_table("measurement_tasks", schema=None) as batch:
        batch.alter_column("purpose", existing_type=sa.Text(), nullable=False)
        batch.alter_column("priority", server_default=None)
        batch.create_foreign_key(
            op.f("fk_measurement_tasks_only_agent_id_agents"), "agents", ["only_agent_id"], ["id"]
        )
        batch.drop_index(op.f("ix_measurement_tasks_kit_id"))
        batch.drop_index(op.f("ix_measurement_tasks_target_id_status_effort_created_at"))
        batch.drop_constraint(op.f("fk_measurement_tasks_kit_id_kits"), type_="foreignkey")
        batch.drop_column("kit_id")
        batch.create_index(
            op.f("ix_measurement_tasks_target_id_status_effort_priority"),
            ["target_id", "status", "effort", "priority"],
        )
        batch.create_index(op.f("ix_measurement_tasks_target_id_subject"), ["target_id", "subject"])


def _measurements() -> None:
    with op.batch_alter_table("measurements", schema=None) as batch:
        batch.add_column(sa.Column("sigma_ms", sa.Double(), nullable=True))
        batch.add_column(sa.Column("provider", sa.Text(), nullable=False, server_default=""))
        batch.add_column(sa.Column("measured_at", sa.DateTime(timezone=True), nullable=True))
        batch.add_column(sa.Column("grade", sa.Text(), nullable=True))
        batch.add_column(sa.Column("quarantined", _JSON, nullable=False, server_default="[]"))
    op.execute(
        "UPDATE measurements SET measured_at = created_at, "
        "grade = CASE WHEN flagged THEN 'C' ELSE 'B' END"
    )
    with op.batch_alter_table("measurements", schema=None) as batch:
        batch.alter_column("provider", server_default=None)
        batch.alter_column("quarantined", server_default=None)
        batch.alter_column("measured_at", existing_type=sa.DateTime(timezone=True), nullable=False)
        batch.alter_column("grade", existing_type=sa.Text(), nullable=False)
        batch.alter_column("thread_cpu_ms", existing_type=sa.Double(), nullable=True)


def downgrade() -> None:
    """Undo; a task of several kits stays with one of them, an agent with its first target."""
    op.drop_column("latency_models", "stale")
    op.drop_column("enrolment_codes", "search_space")
    op.drop_table("signing_keys")
    op.execute("UPDATE measurements SET thread_cpu_ms = 0 WHERE thread_cpu_ms IS NULL")
    with op.batch_alter_table("measurements", schema=None) as batch:
        batch.alter_column("thread_cpu_ms", existing_type=sa.Double(), nullable=False)
        for name in ("sigma_ms", "provider", "measured_at", "grade", "quarantined"):
            batch.drop_column(name)
    with op.batch_alter_table("measurement_tasks", schema=None) as batch:
        batch.add_column(sa.Column("kit_id", _ID, nullable=True))
    op.execute(
        "UPDATE measurement_tasks SET kit_id = "
        "(SELECT MIN(kit_id) FROM kit_items WHERE task_id = measurement_tasks.id)"
    )
    with op.batch_alter_table("measurement_tasks", schema=None) as batch:
        batch.drop_index(op.f("ix_measurement_tasks_target_id_status_effort_priority"))
        batch.drop_index(op.f("ix_measurement_tasks_target_id_subject"))
        batch.drop_constraint(op.f("fk_measurement_tasks_only_agent_id_agents"), type_="foreignkey")
        for name in ("purpose", "only_agent_id", "priority"):
            batch.drop_column(name)
        batch.create_foreign_key(
            op.f("fk_measurement_tasks_kit_id_kits"), "kits", ["kit_id"], ["id"]
        )
        batch.create_index(op.f("ix_measurement_tasks_kit_id"), ["kit_id"])
        batch.create_index(
            op.f("ix_measurement_tasks_target_id_status_effort_created_at"),
            ["target_id", "status", "effort", "created_at"],
        )
    op.drop_table("kit_files")
    op.drop_table("kit_items")
    with op.batch_alter_table("agents", schema=None) as batch:
        batch.add_column(sa.Column("target_id", _ID, nullable=True))
    op.execute(
        "UPDATE agents SET target_id = (SELECT target_id FROM agent_targets "
        "WHERE agent_id = agents.id AND position = 0)"
    )
    with op.batch_alter_table("agents", schema=None) as batch:
        batch.alter_column("target_id", existing_type=_ID, nullable=False)
        batch.create_foreign_key(
            op.f("fk_agents_target_id_targets"), "targets", ["target_id"], ["id"]
        )
        batch.create_index(op.f("ix_agents_target_id"), ["target_id"])
        for name in ("journal_batches", "accepted", "rejected", "flagged", "draining", "activity"):
            batch.drop_column(name)
    op.drop_table("agent_targets")
    _targets({}, removed=("clock_state",))
