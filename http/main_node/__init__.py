"""The facade's link to the main node: calls, events, statistics."""
