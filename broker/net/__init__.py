"""The sockets of the main node, and what it takes from whom."""
