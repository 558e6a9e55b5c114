from django.db import migrations

from core.postgres.row_security import RowSecurity


class Migration(migrations.Migration):
    dependencies = [("orchestrator", "0003_batch"), ("core", "0011_row_security")]

    operations = [RowSecurity()]
