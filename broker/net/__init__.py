"""The sockets of the main node: who may connect, and how much each may send."""
