import django.db.models.deletion
import django.db.models.manager
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("core", "0006_outbox")]

    operations = [
        migrations.AddField("tenant", "guarded", models.BooleanField(default=False, editable=False)),
        migrations.AddField(
            "tenant",
            "suspended_at",
            models.DateTimeField(editable=False, null=True, verbose_name="suspended at"),
        ),
        migrations.AddField(
            "tenant",
            "suspended_reason",
            models.CharField(blank=True, default="", editable=False, max_length=500, verbose_name="reason"),
            preserve_default=False,
        ),
        migrations.CreateModel(
            name="EndUserSecret",
            fields=[
                (
                    "id",
                    models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"),
                ),
                (
                    "prefix",
                    models.CharField(editable=False, max_length=12, unique=True, verbose_name="prefix"),
                ),
                ("name", models.CharField(max_length=80, verbose_name="name")),
                ("encrypted", models.TextField(blank=True, editable=False)),
                ("created_at", models.DateTimeField(auto_now_add=True, verbose_name="created at")),
                (
                    "revoked_at",
                    models.DateTimeField(blank=True, editable=False, null=True, verbose_name="revoked at"),
                ),
                (
                    "tenant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="core.tenant",
                        verbose_name="tenant",
                    ),
                ),
            ],
            options={
                "verbose_name": "end-user secret",
                "verbose_name_plural": "end-user secrets",
                "abstract": False,
                "default_manager_name": "unscoped",
                "indexes": [
                    models.Index(
                        condition=models.Q(("revoked_at", None)),
                        fields=["tenant"],
                        name="end_user_secret_living",
                    )
                ],
            },
            managers=[("unscoped", django.db.models.manager.Manager())],
        ),
    ]
