"""What a HELLO may say beyond its form, which schemas/protocol checks (docs/protocol.md)."""

from __future__ import annotations

import re
from dataclasses import replace

from retire_cluster.broker.core.devices.type_registry import is_safe
from retire_cluster.schemas.protocol import messages as msg
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.text.clean_text import plain, plain_lines, plain_value
from retire_cluster.schemas.text.json_text import dumps, is_deeper
from retire_cluster.schemas.vocabulary import (
    DEVICE_ID_PATTERN,
    RESERVED_DEVICE_IDS,
    TAG_PATTERN,
    TASK_TYPE_PATTERN,
    Platform,
    Role,
)

MAX_CAPABILITIES_DEPTH = 8
MAX_CAPABILITIES_BYTES = 64 * 1024


def find_fault(hello: msg.Hello) -> str:
    """Return what is wrong with a HELLO beyond its form; empty when nothing is."""
    if not re.fullmatch(DEVICE_ID_PATTERN, hello.device_id):
        return f"device_id: {hello.device_id[:100]!r} is not letters, digits or _.:- (up to 100)"
    if hello.device_id in RESERVED_DEVICE_IDS:
        return f"device_id: {hello.device_id!r} is a name of the REST API's own; choose another"
    if hello.platform not in Platform._value2member_map_:
        return f"platform: {hello.platform!r} is none of linux, windows, android, darwin"
    if hello.role not in Role._value2member_map_:
        return f"role: {hello.role!r} is none of worker, compute, storage, mobile"
    for tag in hello.tags:
        if not re.fullmatch(TAG_PATTERN, tag):
            return f"tags: {tag[:64]!r} is not letters, digits or _.:=- (up to 64)"
    if is_deeper(hello.capabilities, MAX_CAPABILITIES_DEPTH):
        return f"capabilities: must not be nested deeper than {MAX_CAPABILITIES_DEPTH} levels"
    if len(dumps(hello.capabilities)) > MAX_CAPABILITIES_BYTES:
        return f"capabilities: more than {MAX_CAPABILITIES_BYTES} bytes of JSON"
    return ""


def cleaned(hello: msg.Hello) -> msg.Hello:
    """Return the HELLO without control characters in the texts that are shown."""
    return replace(
        hello,
        version=plain(hello.version),
        hostname=plain(hello.hostname),
        capabilities=plain_value(hello.capabilities),
        left_out=tuple(map(plain, hello.left_out)),
        task_types=tuple(
            replace(
                info,
                name=plain(info.name),
                description=plain_lines(info.description),
                distribution=plain(info.distribution),
                distribution_version=plain(info.distribution_version),
            )
            for info in hello.task_types
        ),
    )


def find_type_fault(info: msg.TypeInfo) -> str:
    """Return why a type that a device offers is left out; empty when it is not."""
    if not re.fullmatch(TASK_TYPE_PATTERN, info.name):
        return f"task type {info.name[:100]!r} is left out: its name is not a-z 0-9 _ . - (to 100)"
    if info.payload_schema is not None and not is_safe(info.payload_schema):
        return (
            f"task type {info.name} is left out: its payload_schema uses rules that are not"
            " allowed (docs/protocol.md)"
        )
    if info.instant and info.name not in BUILTIN:
        return f"task type {info.name} is left out: only built-in types are instant"
    return ""
