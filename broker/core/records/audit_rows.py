"""Events that are kept apart (audit.py) as the store keeps them: they outlive the main node.

What an administrator did is written in the commit of what he did. Denials are written by a sweep,
or with one of those, so that who is denied something does not make the disk busy.
"""

from __future__ import annotations

from collections.abc import Iterable

from retire_cluster.broker.core.instructions import StoreAudit
from retire_cluster.broker.core.records.audit import ACTS, DENIALS
from retire_cluster.broker.core.records.event_log import Entry, EventLog
from retire_cluster.broker.core.rows import AuditRow


def writes(log: EventLog) -> list[StoreAudit]:
    """Return the writes of what is not stored yet of a log; it counts as stored from now on."""
    found = []
    for apart, denials in ((log.acts, False), (log.denials, True)):
        new = apart.take_new()
        if new:
            found.append(StoreAudit([_row(entry) for entry in new], denials, apart.oldest))
    return found


def recall(log: EventLog, rows: Iterable[AuditRow]) -> None:
    """Put what the store kept into a log that has no events yet."""
    for row in sorted(rows, key=lambda row: row.id):
        apart = log.acts if row.type in ACTS else log.denials if row.type in DENIALS else None
        if apart is not None:
            entry = Entry(row.id, row.type, row.at_ms, 0, 0, row.device_id, row.data)
            apart.add(entry, is_stored=True)


def _row(entry: Entry) -> AuditRow:
    return AuditRow(entry.id, entry.type, entry.at_ms, entry.device_id, entry.data)
