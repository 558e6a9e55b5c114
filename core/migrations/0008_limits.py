import django.core.validators
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("core", "0007_access")]

    operations = [
        migrations.AddField(
            model_name="tier",
            name="agent_requests_per_minute",
            field=models.PositiveIntegerField(
                blank=True,
                help_text="Messages and runs that one agent may be asked for in a minute; no limit when empty.",
                null=True,
                validators=[django.core.validators.MinValueValidator(1)],
                verbose_name="questions to one agent",
            ),
        ),
        migrations.AddField(
            model_name="tier",
            name="ip_connects_per_minute",
            field=models.PositiveIntegerField(
                blank=True,
                default=300,
                help_text="Sockets that one address may open in a minute; no limit when empty.",
                null=True,
                validators=[django.core.validators.MinValueValidator(1)],
                verbose_name="connects of one address",
            ),
        ),
        migrations.AddField(
            model_name="tier",
            name="ip_requests_per_minute",
            field=models.PositiveIntegerField(
                blank=True,
                default=600,
                help_text="A minute, over HTTP and over sockets; about a hundred of them may come at once. IPv6 counts by networks of 64 bits. No limit when empty.",
                null=True,
                validators=[django.core.validators.MinValueValidator(1)],
                verbose_name="requests of one address",
            ),
        ),
        migrations.AddField(
            model_name="tier",
            name="max_waiting",
            field=models.PositiveIntegerField(
                blank=True,
                default=10000,
                help_text="Runs of one tenant that may wait for a worker; further ones are refused. No bound when empty.",
                null=True,
                validators=[django.core.validators.MinValueValidator(1)],
                verbose_name="longest backlog",
            ),
        ),
        migrations.AddField(
            model_name="tier",
            name="session_messages_per_minute",
            field=models.PositiveIntegerField(
                blank=True,
                default=60,
                help_text="Messages that one session may be sent in a minute; no limit when empty.",
                null=True,
                validators=[django.core.validators.MinValueValidator(1)],
                verbose_name="messages of one session",
            ),
        ),
        migrations.AddField(
            model_name="tier",
            name="tenant_requests_per_minute",
            field=models.PositiveIntegerField(
                blank=True,
                help_text="Requests that a tenant may get in a minute from everybody together; no limit when empty.",
                null=True,
                validators=[django.core.validators.MinValueValidator(1)],
                verbose_name="requests of all",
            ),
        ),
        migrations.AddConstraint(
            model_name="tier",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("agent_requests_per_minute__gte", 1),
                    ("ip_connects_per_minute__gte", 1),
                    ("ip_requests_per_minute__gte", 1),
                    ("max_waiting__gte", 1),
                    ("session_messages_per_minute__gte", 1),
                    ("tenant_requests_per_minute__gte", 1),
                ),
                name="tier_rates",
            ),
        ),
    ]
