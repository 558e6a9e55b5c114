import core.ids
import django.contrib.postgres.fields
import django.contrib.postgres.indexes
import django.core.validators
import django.db.models.deletion
import django.db.models.manager
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('core', '0008_limits'),
    ]

    operations = [
        migrations.AddField(
            model_name='usagerecord',
            name='charged',
            field=django.contrib.postgres.fields.ArrayField(base_field=models.BigIntegerField(), editable=False, null=True, size=None),
        ),
        migrations.AddField(
            model_name='usagerecord',
            name='cost',
            field=models.DecimalField(decimal_places=12, max_digits=28, null=True, verbose_name='US dollars'),
        ),
        migrations.AddField(
            model_name='usagerecord',
            name='held',
            field=models.BooleanField(db_default=False, editable=False),
        ),
        migrations.AddField(
            model_name='usagerecord',
            name='reserved_cost',
            field=models.DecimalField(db_default=0, decimal_places=12, max_digits=28, verbose_name='US dollars reserved'),
        ),
        migrations.AddField(
            model_name='usagerecord',
            name='reserved_tokens',
            field=models.PositiveBigIntegerField(db_default=0, verbose_name='tokens reserved'),
        ),
        migrations.AlterField(
            model_name='usagerecord',
            name='task',
            field=models.ForeignKey(db_index=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='usage', to='core.task', verbose_name='task'),
        ),
        migrations.CreateModel(
            name='Budget',
            fields=[
                ('id', models.UUIDField(default=core.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ('subject', models.CharField(choices=[('tenant', 'tenant'), ('agent', 'agent'), ('end_user', 'end user')], max_length=10, verbose_name='subject')),
                ('agent_id', models.UUIDField(blank=True, null=True, verbose_name='agent')),
                ('end_user', models.CharField(blank=True, help_text='Empty: each end user for themselves.', max_length=255, verbose_name='end user')),
                ('period', models.CharField(choices=[('day', 'day'), ('month', 'month'), ('total', 'total')], max_length=10, verbose_name='period')),
                ('limit_tokens', models.PositiveBigIntegerField(blank=True, help_text='Prompt and completion together; no bound when empty.', null=True, validators=[django.core.validators.MinValueValidator(1)], verbose_name='tokens')),
                ('limit_cost', models.DecimalField(blank=True, decimal_places=12, help_text='No bound when empty. Models without a price are refused where there is one.', max_digits=28, null=True, verbose_name='US dollars')),
                ('locked', models.BooleanField(default=False, help_text="The tenant's own keys and people may read it, and not change it.", verbose_name='locked')),
                ('created_at', models.DateTimeField(auto_now_add=True, verbose_name='created at')),
                ('updated_at', models.DateTimeField(auto_now=True, verbose_name='updated at')),
                ('tenant', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to='core.tenant', verbose_name='tenant')),
            ],
            options={
                'verbose_name': 'budget',
                'verbose_name_plural': 'budgets',
                'abstract': False,
                'default_manager_name': 'unscoped',
            },
            managers=[
                ('unscoped', django.db.models.manager.Manager()),
            ],
        ),
        migrations.CreateModel(
            name='BudgetUse',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('end_user', models.CharField(blank=True, max_length=255, verbose_name='end user')),
                ('begins_at', models.DateTimeField(verbose_name='begins at')),
                ('spent_tokens', models.BigIntegerField(db_default=0, verbose_name='tokens used')),
                ('held_tokens', models.BigIntegerField(db_default=0, verbose_name='tokens reserved')),
                ('spent_cost', models.DecimalField(db_default=0, decimal_places=12, max_digits=28, verbose_name='US dollars used')),
                ('held_cost', models.DecimalField(db_default=0, decimal_places=12, max_digits=28, verbose_name='US dollars reserved')),
                ('told', models.PositiveSmallIntegerField(db_default=0, editable=False)),
                ('budget', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='uses', to='core.budget', verbose_name='budget')),
                ('tenant', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='+', to='core.tenant', verbose_name='tenant')),
            ],
            options={
                'verbose_name': 'use of a budget',
                'verbose_name_plural': 'uses of budgets',
                'abstract': False,
                'default_permissions': ('view',),
                'default_manager_name': 'unscoped',
            },
            managers=[
                ('unscoped', django.db.models.manager.Manager()),
            ],
        ),
        migrations.CreateModel(
            name='ModelPrice',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('provider', models.CharField(max_length=64, verbose_name='provider')),
                ('model', models.CharField(help_text="A model's name; * stands for any characters.", max_length=128, verbose_name='model')),
                ('from_prompt_tokens', models.PositiveIntegerField(default=0, help_text='The price of calls whose prompt has at least so many tokens.', verbose_name='from prompt tokens')),
                ('prompt', models.DecimalField(decimal_places=6, help_text='US dollars per million tokens', max_digits=16, validators=[django.core.validators.MinValueValidator(0)], verbose_name='prompt')),
                ('completion', models.DecimalField(decimal_places=6, help_text='US dollars per million tokens', max_digits=16, validators=[django.core.validators.MinValueValidator(0)], verbose_name='completion')),
                ('cached', models.DecimalField(blank=True, decimal_places=6, help_text='US dollars per million tokens; like the prompt when empty', max_digits=16, null=True, validators=[django.core.validators.MinValueValidator(0)], verbose_name='cached prompt')),
                ('valid_from', models.DateTimeField(verbose_name='valid from')),
                ('source', models.CharField(choices=[('list', 'price list'), ('console', 'console')], editable=False, max_length=10, verbose_name='source')),
                ('created_at', models.DateTimeField(auto_now_add=True, verbose_name='created at')),
                ('withdrawn_at', models.DateTimeField(editable=False, null=True, verbose_name='withdrawn at')),
                ('tenant', models.ForeignKey(blank=True, help_text='Empty: the price of all tenants.', null=True, on_delete=django.db.models.deletion.CASCADE, related_name='+', to='core.tenant', verbose_name='tenant')),
            ],
            options={
                'verbose_name': 'price',
                'verbose_name_plural': 'prices',
                'default_manager_name': 'unscoped',
            },
            managers=[
                ('unscoped', django.db.models.manager.Manager()),
            ],
        ),
        migrations.AddField(
            model_name='usagerecord',
            name='price',
            field=models.ForeignKey(db_constraint=False, db_index=False, null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='core.modelprice', verbose_name='price'),
        ),
        migrations.AddIndex(
            model_name='usagerecord',
            index=django.contrib.postgres.indexes.BrinIndex(fields=['created_at'], name='usage_time'),
        ),
        migrations.AddIndex(
            model_name='usagerecord',
            index=models.Index(condition=models.Q(('held', True)), fields=['created_at'], name='usage_held'),
        ),
        migrations.AddConstraint(
            model_name='budget',
            constraint=models.UniqueConstraint(fields=('tenant', 'subject', 'agent_id', 'end_user', 'period'), name='budget_once', nulls_distinct=False),
        ),
        migrations.AddConstraint(
            model_name='budget',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('limit_tokens__isnull', False), ('limit_cost__isnull', False), _connector='OR'), models.Q(('limit_tokens__lt', 1), _negated=True), models.Q(('limit_cost__lte', 0), _negated=True)), name='budget_limits'),
        ),
        migrations.AddConstraint(
            model_name='budget',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('agent_id', None), ('end_user', ''), ('subject', 'tenant')), models.Q(('agent_id__isnull', False), ('end_user', ''), ('subject', 'agent')), ('subject', 'end_user'), _connector='OR'), name='budget_subject'),
        ),
        migrations.AddIndex(
            model_name='budgetuse',
            index=models.Index(fields=['begins_at'], name='budget_use_age'),
        ),
        migrations.AddConstraint(
            model_name='budgetuse',
            constraint=models.UniqueConstraint(fields=('budget', 'end_user', 'begins_at'), name='budget_use_once'),
        ),
        migrations.AddIndex(
            model_name='modelprice',
            index=models.Index(condition=models.Q(('withdrawn_at', None)), fields=['provider', 'tenant'], name='price_living'),
        ),
        migrations.AddConstraint(
            model_name='modelprice',
            constraint=models.CheckConstraint(condition=models.Q(('prompt__gte', 0), ('completion__gte', 0), models.Q(('cached__lt', 0), _negated=True)), name='price_positive'),
        ),
    ]
