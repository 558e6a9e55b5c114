from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("agents", "0004_bulk_items")]

    operations = [
        migrations.AddField(
            "agent",
            "suspended_at",
            models.DateTimeField(editable=False, null=True, verbose_name="suspended at"),
        ),
        migrations.AddField(
            "agent",
            "suspended_reason",
            models.CharField(blank=True, default="", editable=False, max_length=500, verbose_name="reason"),
            preserve_default=False,
        ),
    ]
