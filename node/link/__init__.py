"""The connection of a worker to its main node."""
