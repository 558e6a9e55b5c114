import django.db.models.deletion
import django.db.models.manager
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ("core", "0003_durable_runs"),
    ]

    operations = [
        migrations.CreateModel(
            name="AuditEntry",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("verb", models.CharField(max_length=64, verbose_name="verb")),
                ("object_type", models.CharField(max_length=40, verbose_name="object type")),
                ("object_id", models.CharField(max_length=64, verbose_name="object id")),
                ("actor", models.CharField(max_length=160, verbose_name="actor")),
                ("before", models.JSONField(verbose_name="before")),
                ("after", models.JSONField(verbose_name="after")),
                (
                    "source",
                    models.CharField(
                        choices=[
                            ("api", "API"),
                            ("admin", "console"),
                            ("socket", "socket"),
                            ("queue", "queue"),
                            ("command", "command line"),
                        ],
                        max_length=10,
                        verbose_name="source",
                    ),
                ),
                ("request_id", models.CharField(blank=True, max_length=64, verbose_name="request id")),
                ("ip", models.GenericIPAddressField(null=True, verbose_name="IP address")),
                ("created_at", models.DateTimeField(auto_now_add=True, verbose_name="time")),
                (
                    "tenant",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="core.tenant",
                        verbose_name="tenant",
                    ),
                ),
            ],
            options={
                "verbose_name": "audit entry",
                "verbose_name_plural": "audit entries",
                "default_manager_name": "unscoped",
                "indexes": [
                    models.Index(fields=["tenant", "-id"], name="audit_tenant"),
                    models.Index(fields=["object_id", "-id"], name="audit_object"),
                ],
            },
            managers=[
                ("unscoped", django.db.models.manager.Manager()),
            ],
        ),
    ]
