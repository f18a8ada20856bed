"""What a program does with a client made by openapi-python-client: `URL KEY FOLDER`.

Run by an interpreter that has nothing of ours. Prints the results as JSON.
"""

# ruff: noqa: E402
# mypy: ignore-errors
from __future__ import annotations

import json
import sys
import time

url, key, folder = sys.argv[1:]
sys.path.insert(0, folder)

from made import AuthenticatedClient
from made.api.devices import list_devices
from made.api.events import poll_events
from made.api.tasks import get_task_result, get_task_status, submit_task
from made.models import Error, SubmitTaskBody, SubmitTaskBodyPayload

with AuthenticatedClient(base_url=url, token=key) as client:
    before = poll_events.sync(client=client).data.next_
    payload = SubmitTaskBodyPayload.from_dict({"expression": "6 * 7"})
    body = SubmitTaskBody(task_type="python_eval", payload=payload)
    submitted = submit_task.sync(client=client, body=body, idempotency_key="once")
    again = submit_task.sync(client=client, body=body, idempotency_key="once")
    task_id = submitted.data.task_id
    until = time.monotonic() + 30
    while not get_task_status.sync(task_id, client=client).data.is_terminal:
        if time.monotonic() > until:
            sys.exit("the task has not ended within 30 s")
    result = get_task_result.sync(task_id, client=client).data
    refused = submit_task.sync(
        client=client, body=SubmitTaskBody(task_type="nobody.has.this", payload=payload)
    )
    events = poll_events.sync(client=client, since=before, task_id=str(task_id)).data.events
    device = list_devices.sync(client=client).data[0]
    print(
        json.dumps(
            {
                "same": again.data.task_id == task_id,
                "status": result.status,
                "value": result.result_data["result"],
                "ran_on": result.worker_device_id == device.device_id,
                "refused": isinstance(refused, Error) and refused.error_code,
                "last_event": events[-1].type_,
            }
        )
    )
