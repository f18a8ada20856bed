"""The pure core of a worker: what it says to the main node, and when."""
