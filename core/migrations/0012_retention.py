import django.core.validators
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("core", "0011_row_security")]

    operations = [
        migrations.AddField(
            "tenant",
            "retention_days",
            models.PositiveIntegerField(
                blank=True,
                help_text="Sessions in which nothing was said for so many days are deleted with all that "
                "belongs to them; for ever when empty.",
                null=True,
                validators=[
                    django.core.validators.MinValueValidator(1),
                    django.core.validators.MaxValueValidator(36500),
                ],
                verbose_name="days that sessions are kept",
            ),
        ),
        migrations.AddConstraint(
            "tenant",
            models.CheckConstraint(
                condition=models.Q(("retention_days__gte", 1)), name="tenant_retention_days"
            ),
        ),
        # What belongs to a session is found by it, to be shown and to be deleted.
        migrations.AddIndex(
            "task",
            models.Index(
                condition=models.Q(("session_id", ""), _negated=True),
                fields=["tenant", "session_id"],
                name="task_session",
            ),
        ),
    ]
