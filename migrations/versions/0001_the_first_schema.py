"""The first schema."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_api_keys_token_hash")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject_id", sa.String(length=40), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("blocked_on", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("available_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_jobs_blocked_on"), ["blocked_on"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_jobs_status_priority_created_at"),
            ["status", "priority", "created_at"],
            unique=False,
        )
        batch_op.create_index(batch_op.f("ix_jobs_subject_id"), ["subject_id"], unique=False)

    op.create_table(
        "targets",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("profile", _JSON, nullable=False),
        sa.Column("profile_digest", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_targets")),
        sa.UniqueConstraint("profile_digest", name=op.f("uq_targets_profile_digest")),
    )
    op.create_table(
        "agents",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("target_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("token_hash", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["target_id"], ["targets.id"], name=op.f("fk_agents_target_id_targets")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agents")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_agents_token_hash")),
    )
    with op.batch_alter_table("agents", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_agents_target_id"), ["target_id"], unique=False)

    op.create_table(
        "enrolment_codes",
        sa.Column("code_hash", sa.Text(), nullable=False),
        sa.Column("created_by", sa.String(length=40), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["created_by"], ["api_keys.id"], name=op.f("fk_enrolment_codes_created_by_api_keys")
        ),
        sa.PrimaryKeyConstraint("code_hash", name=op.f("pk_enrolment_codes")),
    )
    op.create_table(
        "job_attempts",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_attempts_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_job_attempts")),
    )
    op.create_table(
        "kits",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("target_id", sa.String(length=40), nullable=False),
        sa.Column("space", sa.Text(), nullable=False),
        sa.Column("space_digest", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["target_id"], ["targets.id"], name=op.f("fk_kits_target_id_targets")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_kits")),
        sa.UniqueConstraint(
            "target_id", "space_digest", name=op.f("uq_kits_target_id_space_digest")
        ),
    )
    op.create_table(
        "latency_models",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("target_id", sa.String(length=40), nullable=False),
        sa.Column("space", sa.Text(), nullable=False),
        sa.Column("space_digest", sa.Text(), nullable=False),
        sa.Column("document", _JSON, nullable=False),
        sa.Column("report", _JSON, nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["target_id"], ["targets.id"], name=op.f("fk_latency_models_target_id_targets")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_latency_models")),
    )
    with op.batch_alter_table("latency_models", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_latency_models_target_id_space_digest_active"),
            ["target_id", "space_digest", "active"],
            unique=False,
        )

    op.create_table(
        "searches",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("owner_key_id", sa.String(length=40), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("target_id", sa.String(length=40), nullable=False),
        sa.Column("spec", _JSON, nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("phase_since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("status_reason", _JSON, nullable=True),
        sa.Column("progress", _JSON, nullable=True),
        sa.Column("feasibility", _JSON, nullable=True),
        sa.Column("seconds_by_phase", _JSON, nullable=False),
        sa.Column("result", _JSON, nullable=True),
        sa.Column("latency_model_id", sa.String(length=40), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["latency_model_id"],
            ["latency_models.id"],
            name=op.f("fk_searches_latency_model_id_latency_models"),
        ),
        sa.ForeignKeyConstraint(
            ["owner_key_id"], ["api_keys.id"], name=op.f("fk_searches_owner_key_id_api_keys")
        ),
        sa.ForeignKeyConstraint(
            ["target_id"], ["targets.id"], name=op.f("fk_searches_target_id_targets")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_searches")),
        sa.UniqueConstraint(
            "owner_key_id", "idempotency_key", name=op.f("uq_searches_owner_key_id_idempotency_key")
        ),
    )
    with op.batch_alter_table("searches", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_searches_status_created_at"), ["status", "created_at"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_searches_target_id"), ["target_id"], unique=False)

    op.create_table(
        "uploaded_batches",
        sa.Column("agent_id", sa.String(length=40), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("report", _JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f("fk_uploaded_batches_agent_id_agents")
        ),
        sa.PrimaryKeyConstraint("agent_id", "batch_id", name=op.f("pk_uploaded_batches")),
    )
    op.create_table(
        "measurement_tasks",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("target_id", sa.String(length=40), nullable=False),
        sa.Column("kit_id", sa.String(length=40), nullable=True),
        sa.Column("search_id", sa.String(length=40), nullable=True),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("effort", sa.Text(), nullable=False),
        sa.Column("model_sha256", sa.Text(), nullable=False),
        sa.Column("anchor_sha256", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("agent_id", sa.String(length=40), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failure", _JSON, nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f("fk_measurement_tasks_agent_id_agents")
        ),
        sa.ForeignKeyConstraint(
            ["kit_id"], ["kits.id"], name=op.f("fk_measurement_tasks_kit_id_kits")
        ),
        sa.ForeignKeyConstraint(
            ["search_id"], ["searches.id"], name=op.f("fk_measurement_tasks_search_id_searches")
        ),
        sa.ForeignKeyConstraint(
            ["target_id"], ["targets.id"], name=op.f("fk_measurement_tasks_target_id_targets")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_measurement_tasks")),
    )
    with op.batch_alter_table("measurement_tasks", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_measurement_tasks_anchor_sha256"), ["anchor_sha256"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_measurement_tasks_kit_id"), ["kit_id"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_measurement_tasks_model_sha256"), ["model_sha256"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_measurement_tasks_search_id"), ["search_id"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_measurement_tasks_target_id_status_effort_created_at"),
            ["target_id", "status", "effort", "created_at"],
            unique=False,
        )

    op.create_table(
        "search_artifacts",
        sa.Column("search_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("media_type", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["search_id"], ["searches.id"], name=op.f("fk_search_artifacts_search_id_searches")
        ),
        sa.PrimaryKeyConstraint("search_id", "name", name=op.f("pk_search_artifacts")),
    )
    op.create_table(
        "search_events",
        sa.Column("search_id", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("data", _JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["search_id"], ["searches.id"], name=op.f("fk_search_events_search_id_searches")
        ),
        sa.PrimaryKeyConstraint("search_id", "number", name=op.f("pk_search_events")),
    )
    op.create_table(
        "measurements",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("task_id", sa.String(length=40), nullable=False),
        sa.Column("target_id", sa.String(length=40), nullable=False),
        sa.Column("agent_id", sa.String(length=40), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("model_sha256", sa.Text(), nullable=False),
        sa.Column("latency_ms", sa.Double(), nullable=False),
        sa.Column("p10_ms", sa.Double(), nullable=False),
        sa.Column("p90_ms", sa.Double(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("thread_cpu_ms", sa.Double(), nullable=False),
        sa.Column("contended_share", sa.Double(), nullable=False),
        sa.Column("anchor_ms", sa.Double(), nullable=False),
        sa.Column("flagged", sa.Boolean(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("protocol_version", sa.Integer(), nullable=False),
        sa.Column("facts", _JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent_id"], ["agents.id"], name=op.f("fk_measurements_agent_id_agents")
        ),
        sa.ForeignKeyConstraint(
            ["target_id"], ["targets.id"], name=op.f("fk_measurements_target_id_targets")
        ),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["measurement_tasks.id"],
            name=op.f("fk_measurements_task_id_measurement_tasks"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_measurements")),
        sa.UniqueConstraint("task_id", name=op.f("uq_measurements_task_id")),
    )
    with op.batch_alter_table("measurements", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_measurements_target_id_subject_created_at"),
            ["target_id", "subject", "created_at"],
            unique=False,
        )


def downgrade() -> None:
    """Undo."""
    with op.batch_alter_table("measurements", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_measurements_target_id_subject_created_at"))

    op.drop_table("measurements")
    op.drop_table("search_events")
    op.drop_table("search_artifacts")
    with op.batch_alter_table("measurement_tasks", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_measurement_tasks_target_id_status_effort_created_at"))
        batch_op.drop_index(batch_op.f("ix_measurement_tasks_search_id"))
        batch_op.drop_index(batch_op.f("ix_measurement_tasks_model_sha256"))
        batch_op.drop_index(batch_op.f("ix_measurement_tasks_kit_id"))
        batch_op.drop_index(batch_op.f("ix_measurement_tasks_anchor_sha256"))

    op.drop_table("measurement_tasks")
    op.drop_table("uploaded_batches")
    with op.batch_alter_table("searches", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_searches_target_id"))
        batch_op.drop_index(batch_op.f("ix_searches_status_created_at"))

    op.drop_table("searches")
    with op.batch_alter_table("latency_models", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_latency_models_target_id_space_digest_active"))

    op.drop_table("latency_models")
    op.drop_table("kits")
    op.drop_table("job_attempts")
    op.drop_table("enrolment_codes")
    with op.batch_alter_table("agents", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_agents_target_id"))

    op.drop_table("agents")
    op.drop_table("targets")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_jobs_subject_id"))
        batch_op.drop_index(batch_op.f("ix_jobs_status_priority_created_at"))
        batch_op.drop_index(batch_op.f("ix_jobs_blocked_on"))

    op.drop_table("jobs")
    op.drop_table("api_keys")
