import django.core.validators
import django.db.models.deletion
import django.db.models.manager
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ("core", "0004_audit"),
    ]

    operations = [
        migrations.AddField(
            "tier",
            "own_providers",
            models.BooleanField(
                default=True,
                help_text="Whether a tenant may register providers with its own keys and addresses.",
                verbose_name="providers of one's own",
            ),
        ),
        migrations.AddField(
            "tier",
            "max_agents",
            models.PositiveIntegerField(
                blank=True,
                help_text="How many agents a tenant may have; no bound when empty.",
                null=True,
                verbose_name="agents",
            ),
        ),
        migrations.AddField(
            "tier",
            "max_webhooks",
            models.PositiveIntegerField(
                blank=True,
                help_text="How many webhooks a tenant may have; no bound when empty.",
                null=True,
                verbose_name="webhooks",
            ),
        ),
        migrations.AddField(
            "tier",
            "max_run_seconds",
            models.FloatField(
                blank=True,
                help_text="Seconds that a run may take; the platform's bound when empty.",
                null=True,
                validators=[django.core.validators.MinValueValidator(1)],
                verbose_name="longest run",
            ),
        ),
        migrations.AddField(
            "tier",
            "max_output_tokens",
            models.PositiveIntegerField(
                blank=True,
                help_text="Tokens that one answer may have; no bound when empty.",
                null=True,
                validators=[django.core.validators.MinValueValidator(1)],
                verbose_name="max. output tokens",
            ),
        ),
        migrations.AddConstraint(
            "tier",
            models.CheckConstraint(
                condition=models.Q(("max_run_seconds__gt", 0)), name="tier_max_run_seconds"
            ),
        ),
        migrations.AddConstraint(
            "tier",
            models.CheckConstraint(
                condition=models.Q(("max_output_tokens__gte", 1)), name="tier_max_output_tokens"
            ),
        ),
        migrations.CreateModel(
            name="ProviderCredential",
            fields=[
                (
                    "id",
                    models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID"),
                ),
                (
                    "name",
                    models.CharField(
                        max_length=40,
                        validators=[
                            django.core.validators.RegexValidator(
                                "^[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?\\Z",
                                "Use 1 to 40 lower-case letters, digits and inner hyphens.",
                            )
                        ],
                        verbose_name="name",
                    ),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[("openai-wire", "OpenAI")],
                        default="openai-wire",
                        max_length=20,
                        verbose_name="protocol",
                    ),
                ),
                ("base_url", models.CharField(blank=True, max_length=500, verbose_name="base URL")),
                ("encrypted_key", models.TextField(blank=True, editable=False)),
                ("key_end", models.CharField(blank=True, editable=False, max_length=4)),
                ("checked_at", models.DateTimeField(editable=False, null=True, verbose_name="checked at")),
                (
                    "check_error",
                    models.CharField(blank=True, editable=False, max_length=64, verbose_name="error"),
                ),
                (
                    "models_listed",
                    models.PositiveIntegerField(editable=False, null=True, verbose_name="models listed"),
                ),
                ("created_at", models.DateTimeField(auto_now_add=True, verbose_name="created at")),
                ("updated_at", models.DateTimeField(auto_now=True, verbose_name="updated at")),
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
                "verbose_name": "provider",
                "verbose_name_plural": "providers",
                "abstract": False,
                "default_manager_name": "unscoped",
                "constraints": [
                    models.UniqueConstraint(fields=("tenant", "name"), name="provider_credential_name")
                ],
            },
            managers=[
                ("unscoped", django.db.models.manager.Manager()),
            ],
        ),
    ]
