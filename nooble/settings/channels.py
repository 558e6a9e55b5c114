"""Channels over Valkey's pub/sub: hints to open sockets; the session log is the truth."""

from core.broker.urls import channels_host
from core.events.groups import LAYER_PREFIX
from nooble.settings.database import REDIS_URL

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {"hosts": [channels_host(REDIS_URL)], "prefix": LAYER_PREFIX},
    }
}
