"""The exit codes of `retire-cluster-worker`."""

from __future__ import annotations

#: It left in peace; with `--test` it is welcome and runs every kind of task.
OK = 0
#: The worker met an error of its own; it may be started again. With `--test`: it is welcome, but a
#: kind of task fails here.
FAILED = 1
#: It cannot start as asked, or the main node refuses it.
REFUSED = 2
#: With `--test`: the main node does not answer.
UNREACHABLE = 3
#: It was removed from the cluster.
REMOVED = 4
#: It was stopped at once, by a second signal.
INTERRUPTED = 130
