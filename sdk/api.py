"""`RetireClusterAPI`: a method for each endpoint of the REST interface.

Every method returns the answer's envelope, an error's too, exactly as the document's class does.
Answers 429 and 503 are waited out as their `Retry-After` asks, and so is a facade that answered
before and is silent now (it restarts); submissions carry an `Idempotency-Key`, so that trying again
never submits twice. Waiting for results is a long poll, which costs no rate limit.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from retire_cluster.sdk.transport import Transport

_POLL_SECONDS = 25
#: Where long polls are answered at once (too many are parked), ask no more often than this.
_BETWEEN_POLLS_SECONDS = 1.0


class RetireClusterAPI:
    """A client of one cluster's REST interface.

    :param base_url: the interface's address with its version, as `http://localhost:8081/api/v1`
    :param api_key: sent as `X-API-Key`
    :param timeout_seconds: longest silence of the facade
    :param retry_seconds: longest wait for the end of 429, 503 and a restart; 0 for none
    :param limit_seconds: longest wait for the end of 429; default: `retry_seconds`

    Methods raise `retire_cluster.schemas.errors.ClusterUnavailable` when nobody answers, and
    `ValidationError` naming the field, before anything is sent, for what JSON does not have. An
    instance may be shared between threads.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        timeout_seconds: float = 30.0,
        retry_seconds: float = 90.0,
        limit_seconds: float | None = None,
    ) -> None:
        self._transport = Transport(
            base_url,
            timeout_seconds=timeout_seconds,
            retry_seconds=retry_seconds,
            limit_seconds=limit_seconds,
        )
        self.base_url = self._transport.base_url
        self.headers = {"Content-Type": "application/json"}
        if api_key:
            self.headers["X-API-Key"] = api_key

    def get_cluster_status(self) -> dict[str, Any]:
        """Get devices, resources and tasks at a glance."""
        return self._get("/cluster/status")

    def get_cluster_metrics(self) -> dict[str, Any]:
        """Get measured utilization and performance."""
        return self._get("/cluster/metrics")

    def list_devices(self, **filters: Any) -> dict[str, Any]:
        """Get a page of devices: `page, page_size, status, role, platform, tags`."""
        return self._get("/devices", **filters)

    def get_device(self, device_id: str) -> dict[str, Any]:
        """Get everything about one device."""
        return self._get(f"/devices/{quote(device_id, safe='')}")

    def ping_device(self, device_id: str) -> dict[str, Any]:
        """Make a round trip to a device."""
        return self._post(f"/devices/{quote(device_id, safe='')}/ping", repeatable=True)

    def remove_device(self, device_id: str) -> dict[str, Any]:
        """Remove a device from the cluster."""
        return self._send("DELETE", f"/devices/{quote(device_id, safe='')}")

    def submit_task(
        self, task_type: str, payload: Mapping[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        """Submit a task; `priority`, `requirements`, `metadata` as keywords.

        `idempotency_key` chooses the key that makes a repetition harmless; by default each call
        has one of its own.
        """
        key = kwargs.pop("idempotency_key", None)
        body = {"task_type": task_type, "payload": dict(payload), **kwargs}
        return self._submit("/tasks", body, key)

    def submit_tasks(
        self,
        tasks: Sequence[Mapping[str, Any]],
        *,
        idempotency_key: str | None = None,
        retry_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Submit up to 1000 tasks, all or none; the answer has `task_ids`."""
        body = {"tasks": [dict(task) for task in tasks]}
        return self._submit("/tasks/batch", body, idempotency_key, retry_seconds)

    def list_tasks(self, **filters: Any) -> dict[str, Any]:
        """Get a page of tasks: `page, page_size, after, status, task_type, priority, device_id`."""
        return self._get("/tasks", **filters)

    def get_task(self, task_id: str) -> dict[str, Any]:
        """Get everything about one task."""
        return self._get(f"/tasks/{quote(task_id, safe='')}")

    def get_task_status(self, task_id: str) -> dict[str, Any]:
        """Get the status and progress of a task."""
        return self._get(f"/tasks/{quote(task_id, safe='')}/status")

    def get_task_result(self, task_id: str, *, wait_seconds: float = 0) -> dict[str, Any]:
        """Get a finished task's result; an error envelope `NO_TASK_RESULT` before.

        `wait_seconds` (up to 60) waits for its end; a second or more costs no rate limit.
        """
        path = f"/tasks/{quote(task_id, safe='')}/result"
        return self._patiently("GET", path, wait_seconds)

    def get_task_results(
        self, task_ids: Sequence[str], *, wait_seconds: float = 0
    ) -> dict[str, Any]:
        """Get results of up to 1000 tasks: `results`, and ids `unfinished` or `omitted`.

        What did not fit into one answer is omitted: ask for it again. `wait_seconds` (up to 60)
        waits until all have ended; a second or more costs no rate limit.
        """
        body = {"task_ids": list(task_ids)}
        return self._patiently("POST", "/tasks/results", wait_seconds, body=body, repeatable=True)

    def cancel_task(self, task_id: str) -> dict[str, Any]:
        """Cancel a task."""
        return self._post(f"/tasks/{quote(task_id, safe='')}/cancel")

    def cancel_tasks(
        self, task_ids: Sequence[str], *, retry_seconds: float | None = None
    ) -> dict[str, Any]:
        """Cancel up to 1000 tasks; what has ended is listed under `not_cancelled`."""
        body = {"task_ids": list(task_ids)}
        return self._send(
            "POST", "/tasks/cancel", body=body, repeatable=True, retry_seconds=retry_seconds
        )

    def retry_task(self, task_id: str) -> dict[str, Any]:
        """Run an ended task again."""
        return self._post(f"/tasks/{quote(task_id, safe='')}/retry")

    def get_task_types(self) -> dict[str, Any]:
        """Get the task types, built in and of all devices."""
        return self._get("/tasks/types")

    def get_task_statistics(self) -> dict[str, Any]:
        """Get measured statistics of tasks."""
        return self._get("/tasks/statistics")

    def get_config(self, section: str | None = None) -> dict[str, Any]:
        """Get all settings, or those of `server` or `heartbeat`."""
        return self._get(f"/config/{quote(section, safe='')}" if section else "/config")

    def update_config(self, section: str, **values: Any) -> dict[str, Any]:
        """Change settings of a section, all or none."""
        return self._send("PUT", f"/config/{quote(section, safe='')}", body=values, repeatable=True)

    def get_events(
        self, since: int | None = None, *, wait_seconds: float = 0, **filters: Any
    ) -> dict[str, Any]:
        """Get events after a cursor: `type, task_id, device_id`; `data.next` is the next cursor."""
        return self._send(
            "GET",
            "/events",
            query={"since": since, "wait": wait_seconds, **filters},
            timeout_seconds=wait_seconds + self._transport.timeout_seconds,
        )

    def wait(self, task_id: str, timeout_seconds: float | None = None) -> dict[str, Any]:
        """Wait for a task's end and return its result's envelope, or the first error's.

        Waiting costs no rate limit. Raises `TimeoutError` when the time is over.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            asked = time.monotonic()
            left = _POLL_SECONDS if deadline is None else max(0.0, deadline - asked)
            answer = self.get_task_result(task_id, wait_seconds=min(_POLL_SECONDS, left))
            if answer.get("error_code") != "NO_TASK_RESULT":
                return answer
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise TimeoutError(f"task {task_id} has not ended within {timeout_seconds:g} s")
            if now - asked < _BETWEEN_POLLS_SECONDS:
                rest = _BETWEEN_POLLS_SECONDS if deadline is None else deadline - now
                time.sleep(min(_BETWEEN_POLLS_SECONDS, rest))

    def _patiently(
        self, method: str, path: str, wait_seconds: float, **options: Any
    ) -> dict[str, Any]:
        query = {"wait": f"{wait_seconds:.3f}"} if wait_seconds else None
        silence = wait_seconds + self._transport.timeout_seconds
        return self._send(method, path, query=query, timeout_seconds=silence, **options)

    def _submit(
        self,
        path: str,
        body: Mapping[str, Any],
        key: str | None,
        retry_seconds: float | None = None,
    ) -> dict[str, Any]:
        headers = {"Idempotency-Key": key or str(uuid.uuid4())}
        return self._send(
            "POST", path, body=body, headers=headers, repeatable=True, retry_seconds=retry_seconds
        )

    def _get(self, path: str, **query: Any) -> dict[str, Any]:
        return self._send("GET", path, query=query)

    def _post(self, path: str, *, repeatable: bool = False) -> dict[str, Any]:
        return self._send("POST", path, body={}, repeatable=repeatable)

    def _send(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any
    ) -> dict[str, Any]:
        sent = {**self.headers, **(headers or {})}
        return self._transport.send(method, path, headers=sent, **options).body
