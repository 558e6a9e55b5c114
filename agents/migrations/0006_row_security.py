from django.db import migrations

from core.postgres.row_security import RowSecurity


class Migration(migrations.Migration):
    dependencies = [("agents", "0005_access"), ("core", "0011_row_security")]

    operations = [RowSecurity(shared=("agenttemplate",))]
