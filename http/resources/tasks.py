"""Tasks: submit, list, look at, cancel, retry."""

from __future__ import annotations

from typing import Any

import falcon

from retire_cluster.api.admission.auth import Authorizer, network_of
from retire_cluster.api.admission.parking import Parking, WaitBudget
from retire_cluster.api.admission.result_charges import ResultCharges
from retire_cluster.api.admission.strangers import StrangerLimits
from retire_cluster.api.content import reading
from retire_cluster.api.content.submission import (
    SubmissionReader,
    TaskSubmission,
    fingerprint,
    submit_args,
)
from retire_cluster.api.main_node.link import MainNodeLink
from retire_cluster.api.main_node.splicing import spliced
from retire_cluster.api.resources.base import Resource, answer
from retire_cluster.conf import failpoints


class TaskListResource(Resource):
    """Serve `/tasks` and what concerns several tasks at once."""

    def __init__(
        self,
        link: MainNodeLink,
        authorizer: Authorizer,
        reader: SubmissionReader,
        parking: Parking,
        charges: ResultCharges,
        bounds: StrangerLimits,
    ) -> None:
        self._link = link
        self._bounds = bounds
        self._parking = parking
        self._charges = charges
        self._authorizer = authorizer
        self._reader = reader

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer one page of the tasks that match, newest first."""
        data = self._link.data("task.list", req.context.query)
        answer(req, resp, data["items"], pagination=data["pagination"])

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Submit one task."""
        document = reading.json_body(req)
        submission = self._reader.one(document)
        data = self._submit(req, resp, document, [submission], {"task": submission.fields})
        answer(
            req,
            resp,
            {
                "task_id": data["task_ids"][0],
                "task": data["tasks"][0],
                "submitted_at": data["submitted_at"],
            },
            message="Task submitted",
            status=201,
        )

    def on_post_batch(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Submit many tasks, all or none."""
        stranger = self._authorizer.is_stranger(req.context.identity)
        document = reading.json_body(req, stranger=stranger)
        submissions = self._reader.many(document)
        args = {**submit_args(submissions), "brief": True}
        data = self._submit(req, resp, document, submissions, args)
        answer(
            req,
            resp,
            {"task_ids": data["task_ids"], "submitted_at": data["submitted_at"]},
            message=f"{len(data['task_ids'])} tasks submitted",
            status=201,
        )

    def on_post_results(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer the results of many tasks once all have ended or the wait is over."""
        args = {"task_ids": reading.checked_body(req)["task_ids"], "timeout_seconds": 0}
        with self._charges.charging_absence(req):
            found = self._link.call("task.wait", args, patient=True)
        wait = float(req.context.query["wait"])
        waited = False
        if wait and found.data["unfinished"]:
            with self._parking.park(req, wait) as budget:
                if await_ends(self._link, found.data["unfinished"], budget):
                    found = self._link.call("task.wait", args, patient=True)
                waited = budget.used
            if found.data["unfinished"] and not budget.parked:
                self._parking.count(req)
        self._charges.charge(req, found.data["results"], waited=waited)
        answer(req, resp, spliced(found))

    def on_post_cancel(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Cancel many tasks."""
        args = {"task_ids": reading.checked_body(req)["task_ids"]}
        args |= self._authorizer.caller(req.context.identity)
        data = self._link.call("task.cancel_many", args, patient=True).data
        answer(req, resp, data, message=f"{len(data['cancelled'])} tasks cancelled")

    def on_get_statistics(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer counts, durations and load."""
        answer(req, resp, self._link.data("task.statistics"))

    def on_get_types(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer the built-in task types and those that devices offer."""
        answer(req, resp, self._link.data("task.types"))

    def _submit(
        self,
        req: falcon.Request,
        resp: falcon.Response,
        document: dict[str, Any],
        submissions: list[TaskSubmission],
        form: dict[str, Any],
    ) -> dict[str, Any]:
        args = dict(form)
        identity = req.context.identity
        self._authorizer.check_submission(
            identity, {each.fields["task_type"] for each in submissions}
        )
        if self._authorizer.is_stranger(identity):
            auth = self._authorizer.required
            self._bounds.check(
                (each.fields for each in submissions), auth=auth, many="tasks" in document
            )
            args |= self._bounds.told(network_of(identity.peer.address), auth=auth)
        key = reading.idempotency_key(req)
        if key is not None:
            args["owner"] = identity.owner
            args["idempotency_key"] = key
            args["fingerprint"] = fingerprint(document)
        payloads = [each.payload for each in submissions]
        data = self._link.call("task.submit", args, payloads, patient=len(payloads) > 1).data
        failpoints.reach("facade-after-submit")
        if data.get("replayed"):
            resp.set_header("Idempotent-Replayed", "true")
        return data


def await_ends(link: MainNodeLink, task_ids: list[str], budget: WaitBudget) -> bool:
    """Wait until these tasks have ended, one after the other; tell whether any did."""
    ended = False
    for task_id in task_ids:
        while True:
            left = budget.slice()
            args = {"task_ids": [task_id], "timeout_seconds": left, "brief": True}
            data = link.call("task.wait", args, extra_seconds=left).data
            if data["statuses"][0] is not None:
                ended = True
                break
            if not left:
                return ended
    return ended


class TaskResource(Resource):
    """Serve `/tasks/{task_id}`: one task."""

    def __init__(
        self, link: MainNodeLink, authorizer: Authorizer, parking: Parking, charges: ResultCharges
    ) -> None:
        self._link = link
        self._authorizer = authorizer
        self._parking = parking
        self._charges = charges

    def on_get(self, req: falcon.Request, resp: falcon.Response, task_id: str) -> None:
        """Answer everything that is known of it."""
        self._show(req, resp, "task.get", task_id)

    def on_get_status(self, req: falcon.Request, resp: falcon.Response, task_id: str) -> None:
        """Answer its status and progress."""
        self._show(req, resp, "task.status", task_id)

    def on_get_result(self, req: falcon.Request, resp: falcon.Response, task_id: str) -> None:
        """Answer its result once it has one; 404 when the wait is over without."""
        task_id = reading.task_id(task_id)
        wait = float(req.context.query["wait"])
        waited = False
        with self._charges.charging_absence(req):
            if wait:
                with self._parking.park(req, wait) as budget:
                    ended = await_ends(self._link, [task_id], budget)
                    waited = budget.used
                if not ended and not budget.parked:
                    self._parking.count(req)
            found = self._link.call("task.result", {"task_id": task_id})
        self._charges.charge(req, [found.data], waited=waited)
        answer(req, resp, spliced(found))

    def on_get_explanation(self, req: falcon.Request, resp: falcon.Response, task_id: str) -> None:
        """Answer, for each device, whether it may run this task and why not."""
        self._show(req, resp, "task.explain", task_id)

    def on_post_cancel(self, req: falcon.Request, resp: falcon.Response, task_id: str) -> None:
        """Cancel it; a running one is killed."""
        data = self._change("task.cancel", req, task_id)
        answer(req, resp, data, message="Task cancelled")

    def on_post_retry(self, req: falcon.Request, resp: falcon.Response, task_id: str) -> None:
        """Run it again from the beginning."""
        data = self._change("task.retry", req, task_id)
        answer(req, resp, data, message="Task queued again")

    def _change(self, op: str, req: falcon.Request, task_id: str) -> dict[str, Any]:
        task_id = reading.task_id(task_id)
        reading.checked_body(req)
        caller = self._authorizer.caller(req.context.identity)
        return self._link.data(op, {"task_id": task_id, **caller})

    def _show(self, req: falcon.Request, resp: falcon.Response, op: str, task_id: str) -> None:
        found = self._link.call(op, {"task_id": reading.task_id(task_id)})
        answer(req, resp, spliced(found))
