"""`python -m retire_cluster.node`: the same as `retire-cluster-worker`."""

from __future__ import annotations

import sys

from retire_cluster.node.link import join_line

join_line.hide()

from retire_cluster.node.cli import main  # noqa: E402 - once the command line is clean

sys.exit(main())
