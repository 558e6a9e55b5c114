from django.db import migrations

from core.postgres.row_security import RowSecurity


class Migration(migrations.Migration):
    dependencies = [("conversations", "0002_life_cycle"), ("core", "0011_row_security")]

    operations = [RowSecurity()]
