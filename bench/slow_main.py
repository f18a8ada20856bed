"""The main node with a disk that takes `BENCH_COMMIT_MS` longer for every commit."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from retire_cluster.broker import cli
from retire_cluster.broker.core.instructions import Write
from retire_cluster.broker.store.sqlite import SQLiteStore


def main() -> int:
    """As `retire-cluster-main`."""
    seconds = float(os.environ.get("BENCH_COMMIT_MS", "0")) / 1000
    commit = SQLiteStore.commit

    def slow(self: SQLiteStore, writes: Sequence[Write]) -> None:
        commit(self, writes)
        if seconds:
            time.sleep(seconds)

    SQLiteStore.commit = slow  # type: ignore[method-assign]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
