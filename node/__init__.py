"""What runs on a device: session, runner and task types."""
