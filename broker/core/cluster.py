"""The one way to change a cluster: an event in, instructions out.

`HANDLERS` says which rule answers which event. The rules are in `requests`, `attempts`, `devices`,
`placement` and `sweeps`; they change the state through its verbs and import nothing of this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from retire_cluster.broker.core import attempts, requests, sweeps
from retire_cluster.broker.core import events as ev
from retire_cluster.broker.core.devices import administration, enrolment, event_throttle, membership
from retire_cluster.broker.core.evidence import EventFailed, last_events
from retire_cluster.broker.core.instructions import Instruction
from retire_cluster.broker.core.placement import assignment
from retire_cluster.broker.core.records import audit_rows
from retire_cluster.broker.core.state import ClusterState
from retire_cluster.broker.core.transitions import IllegalTransition
from retire_cluster.schemas.errors import ClusterError

Handler = Callable[[ClusterState, Any, ev.Now], None]

HANDLERS: Final[dict[type, Handler]] = {
    ev.FromDevice: membership.receive,
    ev.Flooded: event_throttle.record_flood,
    ev.ResultsArrived: attempts.record_results,
    ev.TasksSubmitted: requests.submit,
    ev.CancelRequested: requests.cancel,
    ev.TaskDamaged: requests.fail_damaged,
    ev.NotSent: attempts.requeue_unsent,
    ev.ResultDamaged: requests.discard_damaged_result,
    ev.RetryRequested: requests.retry,
    ev.PingRequested: administration.ping,
    ev.DeviceRemoved: administration.remove,
    ev.DeviceReadmitted: administration.readmit,
    ev.DrainRequested: administration.drain,
    ev.ConfigChanged: administration.reconfigure,
    ev.WaitRequested: requests.wait,
    ev.Tick: sweeps.tick,
    ev.Place: assignment.place,
    ev.TokenMade: enrolment.add_token,
    ev.TokenRevoked: enrolment.revoke_token,
    ev.AdminKeyAdded: enrolment.add_admin_key,
    ev.AdminKeyRevoked: enrolment.revoke_admin_key,
    ev.DeviceAuthorised: enrolment.authorise_device,
    ev.ApiKeysUsed: enrolment.record_key_uses,
    ev.ApiKeysChanged: enrolment.record_key_changes,
}


def handle(state: ClusterState, event: ev.Event, now: ev.Now) -> list[Instruction]:
    """Apply one event and return the instructions that it leads to, in order.

    Raises a `ClusterError` for what a client may not ask, `IllegalTransition` for an event that a
    task's state does not allow, `EventFailed` when a rule meets an error of its own. An event that
    raises leaves no instructions; after the last two, what it changed cannot be trusted.
    """
    state.at_task = 0
    try:
        HANDLERS[type(event)](state, event, now)
        if state.log.acts.new:
            for write in audit_rows.writes(state.log):
                state.emit(write)
        return state.take_instructions()
    except (ClusterError, IllegalTransition):
        state.take_instructions()
        raise
    except Exception as error:
        state.take_instructions()
        task = state.at_task or getattr(event, "task", 0)
        raise EventFailed(event, task, last_events(state.log, task)) from error
