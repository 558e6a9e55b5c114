"""Where pytest begins: engines first, then Django's settings, which ask where the engines are."""

import django

from tests import engines

engines.start()
django.setup()
