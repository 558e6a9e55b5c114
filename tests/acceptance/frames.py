"""Holds every frame that the suite hears against `/asyncapi.json`."""

from __future__ import annotations

import functools
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from nooble.reference.asyncapi import document


def check(frame: dict[str, Any]) -> None:
    """Raises jsonschema's ValidationError for a frame that nobody has written down."""
    if "channel" in frame:
        validator = _validators("tellTenant")["Update"]
    elif "channel" in (frame.get("data") or {}):
        validator = _validators("tellTenant")["connection_established"]
    else:
        validators = _validators("tellSession")
        validator = validators.get(frame["event"], validators["Broadcast"])
    validator.validate(frame)


@functools.cache
def _validators(operation: str) -> dict[str, Draft202012Validator]:
    """Of what an operation sends, by event; what has whatever name, by the name of its class."""
    api = document()
    schemas = api["components"]["schemas"]
    resource = Resource.from_contents(api, default_specification=DRAFT202012)
    registry = Registry().with_resource("", resource)
    found = {}
    for message in api["operations"][operation]["messages"]:
        name = message["$ref"].rpartition("/")[2]
        event = schemas[name]["properties"]["event"].get("const", name)
        found[event] = Draft202012Validator(
            {"$ref": f"#/components/schemas/{name}"} | {"components": api["components"]}, registry=registry
        )
    return found
