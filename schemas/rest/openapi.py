"""Make the OpenAPI 3.1 document from the very schemas that requests are validated with."""

from __future__ import annotations

import re
from typing import Any, Final

from retire_cluster.schemas.errors import BY_CODE
from retire_cluster.schemas.rest.endpoints import ENDPOINTS, Endpoint
from retire_cluster.schemas.rest.json_schema import field_json_schema, json_schema
from retire_cluster.schemas.rest.requests import TASK_ID_PATTERN
from retire_cluster.schemas.rest.responses import SCHEMAS
from retire_cluster.schemas.rest.shapes import TEXT, TIME
from retire_cluster.schemas.rights import DANGEROUS, Door, of_type
from retire_cluster.schemas.task_types import BUILTIN
from retire_cluster.schemas.vocabulary import DEVICE_ID_PATTERN

_REQUEST_ID: Final = {
    "type": "string",
    "format": "uuid",
    "examples": ["7f2c1c9e-3c1b-4d0f-9a50-0d6a9a3d2f11"],
}
_DESCRIPTION: Final = """\
Manages and watches a Retire-Cluster.

Every JSON answer is an envelope with `status`, `data`, `message`, `timestamp` and `request_id`
(`pagination` beside `data` for lists); errors carry `error_code` and `error_details`. HEAD works
wherever GET does. Unknown query parameters and unknown body fields are errors.

`x-scope` is the scope that a key needs, `x-scope-needed` when a key is asked for while
authentication is on. `x-scope-of-types` is what the type of a task needs beside it (`*`: any other
type, a device's own among them). `submit:dangerous` holds `submit`, `admin` holds everything.
"""
_PATH_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "device_id": {"type": "string", "pattern": f"^(?:{DEVICE_ID_PATTERN})$"},
    "task_id": {"type": "string", "format": "uuid", "pattern": f"^(?:{TASK_ID_PATTERN})$"},
}
_LIMIT_HEADERS: Final[dict[str, Any]] = {
    "X-RateLimit-Limit": {"schema": {"type": "integer"}, "description": "Requests a minute"},
    "X-RateLimit-Remaining": {"schema": {"type": "integer"}, "description": "Left of them"},
    "X-RateLimit-Reset": {
        "schema": {"type": "integer"},
        "description": "Epoch second when the oldest request leaves the minute",
    },
}


def openapi_document(
    version: str, *, auth_required: bool = False, auth_reads: bool = False
) -> dict[str, Any]:
    """Return the document of an API of this version.

    `auth_required` and `auth_reads` are how this facade is configured: they decide which
    operations list a key as needed.
    """
    paths: dict[str, Any] = {}
    for endpoint in ENDPOINTS.values():
        needs_key = auth_required and (
            bool(endpoint.scope) or (auth_reads and not endpoint.always_open)
        )
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(
            endpoint, needs_key
        )
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "Retire-Cluster REST API",
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(op.tag for op in ENDPOINTS.values())],
        "paths": paths,
        "components": {
            "schemas": {
                **SCHEMAS,
                "Error": _error_schema(),
                "ErrorCode": {"type": "string", "enum": sorted(BY_CODE)},
            },
            "securitySchemes": {
                "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "Bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _operation(endpoint: Endpoint, needs_key: bool) -> dict[str, Any]:
    key: list[dict[str, list[str]]] = [{"ApiKey": []}, {"Bearer": []}]
    found: dict[str, Any] = {
        "operationId": endpoint.operation_id,
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        # An empty requirement beside the others makes the key optional.
        "security": key if needs_key else [{}, *key],
        "responses": _responses(endpoint),
    }
    if endpoint.description:
        found["description"] = endpoint.description
    right = endpoint.right
    if right.scope:
        found["x-scope"] = right.scope
        found["x-scope-needed"] = "always" if right.door is Door.CLOSED else "with auth_reads"
        if right.by_type:
            found["x-scope-of-types"] = {
                **{name: of_type(name) for name in BUILTIN}, "*": DANGEROUS,
            }  # fmt: skip
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _PATH_PARAMETERS[name]}
        for name in re.findall(r"{(\w+)}", endpoint.path)
    ]
    parameters += [_query_parameter(name, rules) for name, rules in endpoint.query.items()]
    if "IDEMPOTENCY_CONFLICT" in endpoint.errors:
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "schema": {"type": "string", "minLength": 1, "maxLength": 200},
                "description": "Makes sending the same submission again safe",
            }
        )
    if parameters:
        found["parameters"] = parameters
    if endpoint.body is not None:
        schema = json_schema(endpoint.body)
        if endpoint.method == "PUT":
            schema["minProperties"] = 1
        content: dict[str, Any] = {"schema": schema}
        if endpoint.body_example is not None:
            content["examples"] = {"documented": {"value": endpoint.body_example}}
        found["requestBody"] = {
            "required": not endpoint.body_optional,
            "content": {"application/json": content},
        }
    return found


def _query_parameter(name: str, rules: dict[str, Any]) -> dict[str, Any]:
    schema = field_json_schema(rules)
    parameter: dict[str, Any] = {"name": name, "in": "query", "required": False, "schema": schema}
    description = schema.pop("description", "")
    if description:
        parameter["description"] = description
    if schema.get("type") == "array":
        parameter.update(style="form", explode=True)
    return parameter


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    found: dict[str, Any] = {str(endpoint.status): _success(endpoint)}
    by_status: dict[int, list[str]] = {}
    for code in _codes(endpoint):
        by_status.setdefault(BY_CODE[code].status, []).append(code)
    for status, codes in sorted(by_status.items()):
        found[str(status)] = _failure(codes)
    if endpoint.answer == "Health":
        found["503"] = {**_success(endpoint), "description": "The main node does not answer"}
    elif endpoint.status == 101:
        found["426"] = _failure(["VALIDATION_ERROR"])
        found["503"] = _failure(["CLUSTER_UNAVAILABLE"])
    elif endpoint.answer == "ClusterHealth":
        schema = {"anyOf": [_envelope(endpoint), {"$ref": "#/components/schemas/Error"}]}
        found["503"] = {
            "description": "Not healthy, or the main node does not answer",
            "content": {"application/json": {"schema": schema}},
        }
    return found


#: Where an answer holds what a further operation takes.
_SOURCES: Final = {
    "task_id": "$response.body#/data/task_id",
    "device_id": "$response.body#/data/device_id",
    "since": "$response.body#/data/next",
    "ticket": "$response.body#/data/ticket",
}
#: The task answers name their device otherwise.
_DEVICE_OF: Final = {
    "TaskResult": "$response.body#/data/worker_device_id",
    "TaskState": "$response.body#/data/assigned_device_id",
    "TaskDetails": "$response.body#/data/assigned_device_id",
}


def _links(endpoint: Endpoint) -> dict[str, Any]:
    """Return how a program goes on from this answer, for tools that chain operations."""
    by_id = {row.operation_id: row for row in ENDPOINTS.values()}
    found = {}
    for name in endpoint.leads_to:
        target = by_id[name]
        wanted = re.findall(r"{(\w+)}", target.path)
        wanted += [key for key in ("since", "ticket") if key in target.query]
        given = {"device_id": _DEVICE_OF.get(endpoint.answer, _SOURCES["device_id"])}
        held = SCHEMAS[endpoint.answer]["properties"]
        sources = {**_SOURCES, **given}
        parameters = {
            key: sources[key] for key in wanted if sources[key].rpartition("/")[2] in held
        }
        found[name] = {
            "operationId": name,
            "parameters": parameters,
            "description": target.summary,
        }
    return found


def _codes(endpoint: Endpoint) -> list[str]:
    codes = ["VALIDATION_ERROR", *endpoint.errors]
    if not endpoint.always_open:
        codes += ["UNAUTHORIZED"]
    if endpoint.right.scope or endpoint.method != "GET":
        codes += ["FORBIDDEN"]
    if endpoint.body is not None:
        codes += ["PAYLOAD_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE"]
    if not endpoint.always_open:
        codes += ["RATE_LIMIT_EXCEEDED"]
    codes += ["INTERNAL_ERROR"]
    if endpoint.needs_cluster and endpoint.answer != "Health":
        codes += ["CLUSTER_UNAVAILABLE"]
    return list(dict.fromkeys(codes))


def _success(endpoint: Endpoint) -> dict[str, Any]:
    if endpoint.status == 101:
        return {"description": "From here on the connection is a WebSocket"}
    content: dict[str, Any] = {}
    if endpoint.media_type != "application/json":
        content["schema"] = TEXT
    elif endpoint.bare:
        content["schema"] = (
            {"$ref": f"#/components/schemas/{endpoint.answer}"}
            if endpoint.answer
            else {"type": "object"}
        )
    else:
        content["schema"] = _envelope(endpoint)
    if endpoint.example is not None:
        value = endpoint.example if endpoint.bare else _example(endpoint)
        content["examples"] = {"documented": {"value": value}}
    found: dict[str, Any] = {
        "description": endpoint.summary,
        "content": {endpoint.media_type: content},
    }
    if not endpoint.unlimited:
        found["headers"] = _LIMIT_HEADERS
    if endpoint.leads_to:
        found["links"] = _links(endpoint)
    return found


def _envelope(endpoint: Endpoint) -> dict[str, Any]:
    data: dict[str, Any] = {"$ref": f"#/components/schemas/{endpoint.answer}"}
    properties: dict[str, Any] = {
        "status": {"const": "success"},
        "data": {"type": "array", "items": data} if endpoint.paged else data,
        "message": TEXT,
        "timestamp": TIME,
        "request_id": _REQUEST_ID,
    }
    required = ["status", "data", "timestamp", "request_id"]
    if endpoint.paged:
        properties["pagination"] = {"$ref": "#/components/schemas/Pagination"}
        required.append("pagination")
    return {"type": "object", "properties": properties, "required": required}


def _example(endpoint: Endpoint) -> dict[str, Any]:
    found: dict[str, Any] = {
        "status": "success",
        "data": endpoint.example,
        "message": "OK",
        "timestamp": TIME["examples"][0],
        "request_id": _REQUEST_ID["examples"][0],
    }
    if endpoint.paged:
        count = len(endpoint.example)
        found["pagination"] = {
            "page": 1,
            "page_size": 20,
            "total_items": count,
            "total_pages": 1,
            "has_next": False,
            "has_previous": False,
        }
    return found


def _failure(codes: list[str]) -> dict[str, Any]:
    sentences = [BY_CODE[code].sentence for code in codes]
    examples = {
        code: {
            "value": {
                "status": "error",
                "message": sentence,
                "error_code": code,
                "error_details": {},
                "timestamp": TIME["examples"][0],
                "request_id": _REQUEST_ID["examples"][0],
            }
        }
        for code, sentence in zip(codes, sentences, strict=True)
    }
    found: dict[str, Any] = {
        "description": " ".join(
            f"`{code}`: {sentence}" for code, sentence in zip(codes, sentences, strict=True)
        ),
        "content": {
            "application/json": {
                "schema": {"$ref": "#/components/schemas/Error"},
                "examples": examples,
            }
        },
    }
    if BY_CODE[codes[0]].status in (429, 503):
        found["headers"] = {
            "Retry-After": {
                "schema": {"type": "integer"},
                "description": "Seconds after which trying again makes sense",
            }
        }
    elif BY_CODE[codes[0]].status == 401:
        found["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return found


def _error_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "status": {"const": "error"},
            "message": TEXT,
            "error_code": {"$ref": "#/components/schemas/ErrorCode"},
            "error_details": {
                "type": "object",
                "properties": {
                    "field": {"type": "string", "description": "First offending field, dotted"},
                    "reason": TEXT,
                    "errors": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {"field": TEXT, "reason": TEXT},
                            "required": ["field", "reason"],
                        },
                    },
                },
            },
            "timestamp": TIME,
            "request_id": _REQUEST_ID,
        },
        "required": [
            *("status", "message", "error_code", "error_details", "timestamp", "request_id")
        ],
    }
