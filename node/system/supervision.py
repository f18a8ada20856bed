"""Whether this process is one of `retire-cluster up`, which keeps a pipe to each of its own."""

from __future__ import annotations

#: Set in the environment of a supervised process: standard input is the supervisor's pipe.
SUPERVISED = "RETIRE_CLUSTER_LIFELINE"
