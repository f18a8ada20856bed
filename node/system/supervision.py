"""How a process knows that it is one of `retire-cluster up`, which holds a pipe to each."""

from __future__ import annotations

#: Set to `stdin` in the environment of a supervised process: its standard input is that pipe.
SUPERVISED = "RETIRE_CLUSTER_LIFELINE"
