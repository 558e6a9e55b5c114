from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("core", "0009_money")]

    operations = [
        migrations.AddField(
            model_name="task",
            name="traceparent",
            field=models.CharField(
                blank=True, db_default="", default="", max_length=55, verbose_name="trace"
            ),
        ),
        migrations.AddField(
            model_name="task",
            name="request_id",
            field=models.CharField(
                blank=True, db_default="", default="", max_length=64, verbose_name="request id"
            ),
        ),
        migrations.AddField(
            model_name="notice",
            name="traceparent",
            field=models.CharField(
                blank=True, db_default="", default="", max_length=55, verbose_name="trace"
            ),
        ),
    ]
