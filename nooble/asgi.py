"""HTTP and WebSocket, joined: `daphne nooble.asgi:application`."""

import os

import django
from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.handlers.asgi import ASGIHandler

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nooble.settings")
django.setup(set_prefix=False)

from orchestrator.routing import websocket_urlpatterns

application = ProtocolTypeRouter({"http": ASGIHandler(), "websocket": URLRouter(websocket_urlpatterns)})
