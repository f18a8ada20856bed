"""`retire-cluster join LINE`: `retire-cluster-worker --join` by a shorter name."""

from __future__ import annotations

from collections.abc import Sequence

from retire_cluster.cli import exits
from retire_cluster.cli.output import Output


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; everything after it goes to the worker."""
    words = list(argv or ())
    if not words or (words[0].startswith("-") and words[0] != "-"):
        Output.standard().hint("usage: retire-cluster join LINE [flags of retire-cluster-worker]")
        return exits.OK if words[:1] in (["-h"], ["--help"]) else exits.USAGE
    from retire_cluster.node.cli import main as worker

    return worker(["--join", *words])
