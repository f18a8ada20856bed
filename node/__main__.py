"""`python -m retire_cluster.node`: the same as `retire-cluster-worker`."""

from __future__ import annotations

import sys

from retire_cluster.node.cli import main

sys.exit(main())
