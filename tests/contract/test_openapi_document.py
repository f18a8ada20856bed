"""The OpenAPI document is valid, and real answers are what it says."""

from __future__ import annotations

import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from openapi_spec_validator import validate

API = "/api/v1"


@pytest.fixture(scope="module")
def document(api: Any) -> Any:
    return api.get(f"{API}/openapi.json").json


def test_the_document_is_valid_openapi_3_1(document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    validate(document)


def test_every_operation_has_an_id_and_its_errors(document: Any) -> None:
    ids = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            ids.append(operation["operationId"])
            assert "400" in operation["responses"], (method, path)
            assert operation["summary"]
    assert len(set(ids)) == len(ids)


def test_every_example_fits_its_schema(document: Any) -> None:
    count = 0
    for methods in document["paths"].values():
        for operation in methods.values():
            contents = [
                content
                for response in operation["responses"].values()
                for content in response.get("content", {}).values()
            ]
            contents += operation.get("requestBody", {}).get("content", {}).values()
            for content in contents:
                for example in content.get("examples", {}).values():
                    check(document, content["schema"], example["value"])
                    count += 1
    assert count > 50


def check(document: Any, schema: Any, value: Any) -> None:
    rooted = {**schema, "components": document["components"]}
    Draft202012Validator(rooted).validate(value)


PATHS = [
    "/health", "/api/health", "/", API, "/cluster/status", "/cluster/health", "/cluster/metrics",
    "/cluster/config", "/devices", "/devices/summary", "/devices/{device_id}",
    "/devices/{device_id}/status", "/tasks", "/tasks/statistics", "/tasks/types",
    "/tasks/{task_id}", "/tasks/{task_id}/status", "/tasks/{task_id}/result",
    "/tasks/{task_id}/explanation", "/events",
    "/config", "/config/server", "/config/heartbeat",
]  # fmt: skip
_BARE = ("/", "/health", "/api/health", API)


@pytest.mark.parametrize("path", PATHS)
def test_a_real_answer_is_what_the_document_says(
    document: Any, api: Any, cluster: Any, path: str
) -> None:
    template = path if path in _BARE else API + path
    for task_type, payload in (("echo", {"a": 1}), ("python_eval", {"expression": "1/0"})):
        task_id = api.submit(task_type, payload)
        api.finished(task_id)
        real = template.replace("{task_id}", task_id).replace("{device_id}", cluster.device_id)
        reply = api.get(real)
        assert reply.status == 200, reply.text
        responses = document["paths"][template]["get"]["responses"]
        check(document, responses["200"]["content"]["application/json"]["schema"], reply.json)
        for name in responses["200"].get("headers", {}):
            assert re.fullmatch(r"X-RateLimit-\w+", name)


@pytest.mark.parametrize(
    ("method", "template", "body", "status"),
    [
        ("post", "/tasks", {"task_type": "echo", "payload": {}}, 201),
        ("post", "/tasks/batch", {"tasks": [{"task_type": "echo", "payload": {}}]}, 201),
        ("post", "/devices/{device_id}/ping", None, 200),
        ("post", "/devices/{device_id}/resume", None, 200),
        ("post", "/events/ticket", None, 200),
        ("put", "/config/server", {"max_connections": 1000}, 200),
        ("post", "/config/reset", None, 200),
        ("post", "/tasks", {"task_type": "echo"}, 400),
        ("put", "/config/heartbeat", {"interval": 0}, 400),
        ("post", "/tasks/{task_id}/cancel", None, 404),
        ("post", "/tasks/{task_id}/retry", None, 404),
        ("delete", "/devices/{device_id}x", None, 404),
    ],
)
def test_a_real_answer_to_a_change_is_what_the_document_says(
    document: Any, api: Any, cluster: Any, method: str, template: str, body: Any, status: int
) -> None:
    real = template.replace("{task_id}", "550e8400-e29b-41d4-a716-446655440000").replace(
        "{device_id}", cluster.device_id
    )
    headers = {"Content-Type": "application/json"}
    reply = api.ask(method.upper(), API + real, json=body, headers=headers)
    assert reply.status == status, reply.text
    operation = document["paths"][API + template.removesuffix("x")][method]
    schema = operation["responses"][str(status)]["content"]["application/json"]["schema"]
    check(document, schema, reply.json)


def test_the_document_says_when_a_key_is_needed(start_api: Any, document: Any) -> None:
    closed = start_api("--api-key", "k", "--no-rate-limit").get(f"{API}/openapi.json").json
    operation = closed["paths"][f"{API}/config"]["get"]
    assert operation["security"] == [{"ApiKey": []}, {"Bearer": []}]
    assert {} in document["paths"][f"{API}/config"]["get"]["security"]
    assert {} in closed["paths"][f"{API}/devices"]["get"]["security"]


def test_every_link_leads_from_a_real_answer_to_an_operation_with_all_it_needs(
    document: Any, api: Any, cluster: Any
) -> None:
    by_id = {
        operation["operationId"]: (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    done = api.submit("python_eval", {"expression": "1/0"})
    api.finished(done)
    asked = {"task_id": done, "device_id": cluster.device_id}
    count = 0
    for method, path, operation in by_id.values():
        for response in operation["responses"].values():
            links = response.get("links", {})
            if not links:
                continue
            real = re.sub(r"{(\w+)}", lambda found: asked[found[1]], path)
            body = {"task_type": "echo", "payload": {}} if path == f"{API}/tasks" else None
            answer = api.post(real, body) if method == "post" else api.get(real)
            for link in links.values():
                _, target, aim = by_id[link["operationId"]]
                known = {each["name"] for each in aim.get("parameters", ())}
                assert set(re.findall(r"{(\w+)}", target)) <= set(link["parameters"]) <= known
                for pointer in link["parameters"].values():
                    value = answer.json
                    for step in pointer.removeprefix("$response.body#/").split("/"):
                        value = value[step]
                    assert value not in (None, ""), (path, link)
                    count += 1
    assert count > 20


def test_a_program_gets_from_submit_to_the_result_by_the_documents_links(
    document: Any, api: Any
) -> None:
    paths = {
        operation["operationId"]: (path, operation)
        for path, methods in document["paths"].items()
        for operation in methods.values()
    }
    path, submit = paths["submitTask"]
    example = submit["requestBody"]["content"]["application/json"]["examples"]["documented"]
    body = {**example["value"], "requirements": {}}
    answer = api.post(path, body).json
    link = submit["responses"]["201"]["links"]["getTaskResult"]
    task_id = answer["data"][link["parameters"]["task_id"].rpartition("/")[2]]
    api.finished(task_id)
    target = paths[link["operationId"]][0].replace("{task_id}", task_id)
    assert api.get(target).data["result_data"] == {"echo": body["payload"]}
