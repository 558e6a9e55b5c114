import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ("agents", "0001_initial"),
    ]

    operations = [
        migrations.AddField(
            "agentversion", "note", models.CharField(blank=True, max_length=500, verbose_name="note")
        ),
        migrations.AddField("agent", "edits", models.PositiveIntegerField(default=0, editable=False)),
        migrations.AddField(
            "agent",
            "published",
            models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="agents.agentversion",
                verbose_name="published version",
            ),
        ),
        migrations.RunSQL(
            [
                # The rows' checks wait for the commit otherwise, and no constraint is made then.
                "SET CONSTRAINTS ALL IMMEDIATE",
                "UPDATE agents_agent SET published_id = version_id WHERE status = 'published'",
            ],
            migrations.RunSQL.noop,
        ),
        migrations.AddConstraint(
            "agent",
            models.CheckConstraint(
                name="agent_published",
                condition=models.Q(("published__isnull", False), ("status", "published"))
                | models.Q(("published", None), ("status", "draft")),
            ),
        ),
    ]
