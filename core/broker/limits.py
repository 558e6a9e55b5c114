"""Weights and caps of tenants, where the transport's scripts read them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import redis

from core import valkey
from core.broker.scripts import ROOT

logger = logging.getLogger(__name__)

Limits = tuple[str, float, int]  # tenant, weight, cap

_LIMITS = f"{ROOT}:limits"
_TOLD = f"{ROOT}:limits:told"  # there as long as the broker has its data


def tell(limits: Iterable[Limits]) -> None:
    """Limits of some tenants; in force with the next message.

    A broker that is away is told when it is back: see `tell_all`.
    """
    mapping: Any = {tenant: f"{weight:g} {cap}" for tenant, weight, cap in limits}
    if not mapping:
        return
    try:
        valkey.client().hset(_LIMITS, mapping=mapping)
    except redis.RedisError as error:
        logger.warning("limits are told later: %s", error)
        try:
            valkey.client().delete(_TOLD)
        except redis.RedisError:
            return


def are_told() -> bool:
    """Whether the broker has heard of all tenants since it lost its data. Raises redis.RedisError."""
    return bool(valkey.client().exists(_TOLD))


def tell_all(limits: Iterable[Limits]) -> None:
    """Every tenant, in place of what the broker knew. Raises redis.RedisError."""
    fresh = f"{_LIMITS}:fresh"
    client = valkey.client()
    client.delete(fresh)
    batch: Any = {}
    for tenant, weight, cap in limits:
        batch[tenant] = f"{weight:g} {cap}"
        if len(batch) == 1_000:
            client.hset(fresh, mapping=batch)
            batch.clear()
    if batch:
        client.hset(fresh, mapping=batch)
    pipeline = client.pipeline()
    if client.exists(fresh):
        pipeline.rename(fresh, _LIMITS)
    else:
        pipeline.delete(_LIMITS)
    pipeline.set(_TOLD, 1)
    pipeline.execute()
