"""What a device is, how it is doing, and what its owner allows."""
