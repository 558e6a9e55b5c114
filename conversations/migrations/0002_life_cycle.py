import django.db.models.functions.datetime
from django.db import migrations, models

# What is there has been said something in, or never will: its life goes on from there.
LIVED = """
UPDATE conversations_session AS session SET
    last_active_at = COALESCE(said.last, session.created_at),
    state = CASE WHEN said.last IS NULL THEN 'created' ELSE 'active' END
FROM conversations_session AS old
LEFT JOIN (
    SELECT session_id, max(created_at) AS last FROM conversations_message GROUP BY session_id
) AS said ON said.session_id = old.id
WHERE old.id = session.id
"""


class Migration(migrations.Migration):
    dependencies = [("conversations", "0001_initial")]

    operations = [
        migrations.AddField(
            "session",
            "state",
            models.CharField(
                choices=[
                    ("created", "created"),
                    ("active", "active"),
                    ("idle", "idle"),
                    ("closed", "closed"),
                    ("expired", "expired"),
                ],
                default="created",
                max_length=10,
                verbose_name="state",
            ),
        ),
        migrations.AddField(
            "session",
            "title",
            models.CharField(blank=True, default="", max_length=200, verbose_name="title"),
            preserve_default=False,
        ),
        migrations.AddField(
            "session",
            "user_info",
            models.JSONField(blank=True, default=dict, verbose_name="about the end user"),
        ),
        migrations.AddField(
            "session",
            "context",
            models.JSONField(blank=True, default=dict, verbose_name="context variables"),
        ),
        migrations.AddField(
            "session",
            "last_active_at",
            models.DateTimeField(
                db_default=django.db.models.functions.datetime.Now(), verbose_name="last active at"
            ),
        ),
        migrations.AddField("session", "ended_at", models.DateTimeField(null=True, verbose_name="ended at")),
        migrations.AddField("session", "deleted_at", models.DateTimeField(editable=False, null=True)),
        migrations.RunSQL(LIVED, migrations.RunSQL.noop),
        # The checks of deferred keys are done: what follows alters the table.
        migrations.RunSQL("SET CONSTRAINTS ALL IMMEDIATE", migrations.RunSQL.noop),
        migrations.AddConstraint(
            "session",
            models.CheckConstraint(
                condition=models.Q(("state__in", ["created", "active", "idle", "closed", "expired"])),
                name="session_state",
            ),
        ),
        migrations.AddConstraint(
            "session",
            models.CheckConstraint(
                condition=models.Q(
                    models.Q(("ended_at", None), ("state__in", ("created", "active", "idle"))),
                    models.Q(("ended_at__isnull", False), ("state__in", ("closed", "expired"))),
                    _connector="OR",
                ),
                name="session_ended",
            ),
        ),
        migrations.AddIndex(
            "session", models.Index(fields=["tenant", "created_at", "id"], name="session_age")
        ),
        migrations.AddIndex(
            "session",
            models.Index(
                condition=models.Q(("user_id", ""), _negated=True),
                fields=["tenant", "user_id"],
                name="session_user",
            ),
        ),
        migrations.AddIndex(
            "session",
            models.Index(
                condition=models.Q(("state__in", ("created", "active", "idle"))),
                fields=["state", "created_at"],
                name="session_silence",
            ),
        ),
    ]
