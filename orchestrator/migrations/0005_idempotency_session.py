from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("orchestrator", "0004_row_security")]

    operations = [
        migrations.AddField(
            "idempotencykey",
            "session_id",
            models.CharField(blank=True, db_default="", max_length=64),
        ),
        migrations.AddIndex(
            "idempotencykey",
            models.Index(fields=["tenant", "session_id"], name="idempotency_session"),
        ),
    ]
