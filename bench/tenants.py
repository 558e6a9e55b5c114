"""`python -m bench.tenants CAP NAME...`: makes tenants in the running platform of NOOBLE_HOME.

They share one tier that lets each of them run CAP agents at once. Prints their keys as JSON.
"""

from __future__ import annotations

import json
import os
import sys

import django
from django.apps import apps

from core.tenancy import across_tenants

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nooble.settings")


@across_tenants()
def main() -> None:
    cap, names = int(sys.argv[1]), sys.argv[2:]
    django.setup()
    # Models can be imported only now.
    models = {name: apps.get_model("core", name) for name in ("Tier", "Tenant", "ApiKey")}
    kind = models["Tier"]
    tier = kind.objects.create(slug="bench", name="Bench", max_running=cap, **kind.UNLIMITED)
    keys = {}
    for name in names:
        tenant = models["Tenant"].objects.create(id=name, name=name, tier=tier)
        key = models["ApiKey"](
            tenant=tenant, name="bench", scopes=["agents:read", "agents:write", "chat:read", "chat:write"]
        )
        keys[name] = key.mint()
        key.save()
    print(json.dumps(keys))


if __name__ == "__main__":
    main()
