"""HTTP and WebSocket, joined: `daphne nooble.asgi:application`."""

import os

import django
from channels.routing import ProtocolTypeRouter, URLRouter

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nooble.settings")
django.setup(set_prefix=False)

from core import metrics
from core.api.asgi import ThreadedASGIHandler
from orchestrator.daphne import install
from orchestrator.routing import websocket_urlpatterns

install()
metrics.start()
application = ProtocolTypeRouter(
    {"http": ThreadedASGIHandler(), "websocket": URLRouter(websocket_urlpatterns)}
)
