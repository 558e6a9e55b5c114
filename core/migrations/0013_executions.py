"""Runs without a session are listed by themselves."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("core", "0012_retention")]

    operations = [
        migrations.AddIndex(
            model_name="task",
            index=models.Index(
                condition=models.Q(("agent_id__isnull", False), ("session_id", "")),
                fields=["tenant", "-created_at"],
                name="task_execution",
            ),
        ),
    ]
