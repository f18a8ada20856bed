"""What the facade knows and asks of the main node."""
