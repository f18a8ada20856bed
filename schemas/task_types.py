"""The schemas of the built-in task types' payloads (docs/contract.md, Task types).

Devices advertise these very schemas in HELLO; the main node knows them before any device connects.
Pure data in Cerberus's dialect, without Cerberus, which a device does not have.
"""

from __future__ import annotations

from typing import Any, Final

from retire_cluster.schemas.protocol.messages import TypeInfo

MAX_SLEEP_SECONDS: Final = 86_400
HTTP_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: How a function of `python_call` comes: named where it is installed, as text, or pickled.
CALL_FORMS: Final = ("reference", "source", "cloudpickle")

_TEXT_MAP: Final[dict[str, Any]] = {
    "type": "dict",
    "keysrules": {"type": "string", "minlength": 1, "maxlength": 1000},
    "valuesrules": {"type": "string"},
}

BUILTIN: Final[dict[str, TypeInfo]] = {
    info.name: info
    for info in (
        TypeInfo(
            name="echo",
            description="Returns payload as-is",
            payload_schema=None,
            repeatable=True,
            instant=True,
        ),
        TypeInfo(
            name="sleep",
            description="Sleep for specified duration",
            payload_schema={
                "duration": {
                    "type": "finite",
                    "min": 0,
                    "max": MAX_SLEEP_SECONDS,
                    "default": 1,
                    "meta": {"description": "Seconds to sleep"},
                }
            },
            repeatable=True,
        ),
        TypeInfo(
            name="system_info",
            description="Returns device capabilities",
            payload_schema={},
            repeatable=True,
        ),
        TypeInfo(
            name="python_eval",
            description="Evaluate Python expression",
            payload_schema={
                "expression": {
                    "type": "string",
                    "required": True,
                    "minlength": 1,
                    "maxlength": 10_000,
                    "meta": {"description": "An expression of literals, math and safe functions"},
                },
                "variables": {
                    "type": "dict",
                    "keysrules": {"type": "string", "minlength": 1, "maxlength": 100},
                    "meta": {"description": "Names the expression may use"},
                },
            },
            repeatable=True,
        ),
        TypeInfo(
            name="http_request",
            description="Make HTTP requests",
            payload_schema={
                "url": {
                    "type": "string",
                    "required": True,
                    "minlength": 1,
                    "maxlength": 8_192,
                    "meta": {"description": "http:// or https:// address"},
                },
                "method": {"type": "string", "allowed": list(HTTP_METHODS), "default": "GET"},
                "headers": _TEXT_MAP,
                "data": {
                    "anyof": [{"type": "dict"}, {"type": "string"}],
                    "meta": {"description": "An object is sent as JSON, a text as it is"},
                },
                "timeout": {
                    "type": "finite",
                    "min": 0.1,
                    "max": 3_600,
                    "default": 30,
                    "meta": {"description": "Seconds for the whole request"},
                },
            },
        ),
        TypeInfo(
            name="command",
            description="Execute shell commands",
            payload_schema={
                "command": {
                    "required": True,
                    "anyof": [
                        {"type": "string", "minlength": 1, "maxlength": 32_768},
                        {
                            "type": "list",
                            "minlength": 1,
                            "maxlength": 1_000,
                            "schema": {"type": "string", "maxlength": 32_768},
                        },
                    ],
                    "meta": {
                        "description": "Program and arguments; a text where the device's owner"
                        " allows a shell"
                    },
                },
                "timeout": {"type": "finite", "min": 0.1, "max": 86_400},
                "cwd": {"type": "string", "minlength": 1, "maxlength": 4_096},
                "env": _TEXT_MAP,
                "stdin": {"type": "string"},
            },
        ),
        TypeInfo(
            name="python_call",
            description="Call a Python function",
            payload_schema={
                "form": {
                    "type": "string",
                    "required": True,
                    "allowed": list(CALL_FORMS),
                    "meta": {
                        "description": "How the function comes: by name, as text, as a pickle"
                    },
                },
                "function": {
                    "type": "string",
                    "minlength": 1,
                    "maxlength": 500,
                    "meta": {"description": "`module:name`, or with `source` its name in the text"},
                },
                "source": {"type": "string", "minlength": 1},
                "call": {
                    "type": "string",
                    "minlength": 1,
                    "meta": {
                        "description": "Base64 of cloudpickle.dumps((function, args, kwargs))"
                    },
                },
                "args": {"type": "list"},
                "kwargs": {"type": "dict", "keysrules": {"type": "string"}},
                "each": {
                    "type": "boolean",
                    "default": False,
                    "meta": {"description": "`args` is a list of argument lists, a call for each"},
                },
                "python": {
                    "type": "string",
                    "maxlength": 20,
                    "meta": {"description": "Version of Python that the function was sent by"},
                },
                "result": {
                    "type": "string",
                    "allowed": ["plain", "pickle"],
                    "default": "plain",
                    "meta": {"description": "A pickle is for who trusts the device"},
                },
                "retry_errors": {
                    "type": "boolean",
                    "default": False,
                    "meta": {"description": "Try again what raised, as often as max_retries says"},
                },
                "name": {
                    "type": "string",
                    "maxlength": 500,
                    "meta": {"description": "What people call the function"},
                },
                "digest": {
                    "type": "string",
                    "maxlength": 64,
                    "meta": {"description": "Tells functions of one name apart"},
                },
            },
        ),
    )
}
