"""The pure core of the main node: events in, instructions out; no sockets, files or threads."""
