from django.db import migrations, models
from django.db.models.functions import Now

import core.models.task


class Migration(migrations.Migration):

    dependencies = [
        ("core", "0002_fair_queues"),
    ]

    operations = [
        migrations.RunSQL("CREATE SEQUENCE core_task_ordinal", "DROP SEQUENCE core_task_ordinal"),
        migrations.AddField("task", "crashes", models.PositiveSmallIntegerField(default=0, verbose_name="crashes")),
        migrations.AddField("task", "deadline", models.DateTimeField(null=True, verbose_name="deadline")),
        migrations.AddField("task", "due_at", models.DateTimeField(db_default=Now(), verbose_name="due at")),
        migrations.AddField("task", "lease_until", models.DateTimeField(null=True, verbose_name="lease until")),
        migrations.AddField("task", "not_before", models.DateTimeField(null=True, verbose_name="not before")),
        migrations.AddField(
            "task",
            "ordinal",
            models.BigIntegerField(db_default=core.models.task.NextOrdinal(), editable=False, verbose_name="ordinal"),
        ),
        migrations.AddField("task", "serial_key", models.CharField(blank=True, max_length=64, verbose_name="serial key")),
        migrations.AddField(
            "usagerecord",
            "attempt",
            models.PositiveIntegerField(default=1, verbose_name="attempt"),
            preserve_default=False,
        ),
        migrations.AddField(
            "usagerecord",
            "call",
            models.PositiveSmallIntegerField(default=1, verbose_name="call"),
            preserve_default=False,
        ),
        migrations.AlterField(
            "usagerecord",
            "accuracy",
            models.CharField(
                choices=[("exact", "exact"), ("estimated", "estimated"), ("unknown", "unknown")],
                default="unknown",
                max_length=10,
                verbose_name="accuracy",
            ),
        ),
        migrations.AlterField(
            "usagerecord",
            "completion_tokens",
            models.PositiveBigIntegerField(default=0, verbose_name="completion tokens"),
        ),
        migrations.AlterField(
            "usagerecord",
            "prompt_tokens",
            models.PositiveBigIntegerField(default=0, verbose_name="prompt tokens"),
        ),
        migrations.AddIndex(
            "task",
            models.Index(
                name="task_due", fields=["due_at"], condition=models.Q(status__in=("pending", "queued"))
            ),
        ),
        migrations.AddIndex(
            "task",
            models.Index(
                name="task_lease",
                fields=["lease_until"],
                condition=models.Q(status__in=("processing", "cancelling")),
            ),
        ),
        migrations.AddIndex(
            "task",
            models.Index(
                name="task_serial",
                fields=["serial_key", "ordinal"],
                condition=~models.Q(status__in=("completed", "failed", "cancelled")) & ~models.Q(serial_key=""),
            ),
        ),
        migrations.AddConstraint(
            "usagerecord",
            models.UniqueConstraint(name="usage_call", fields=["task", "attempt", "call"]),
        ),
        # What runs now has no lease yet: its worker is stopped for the migration. Last: rows that were
        # rewritten here and then changed have checks that wait for the commit, and no index is made then.
        migrations.RunSQL(
            "UPDATE core_task SET lease_until = now() WHERE status IN ('processing', 'cancelling')",
            migrations.RunSQL.noop,
        ),
    ]
