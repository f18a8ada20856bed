"""Python functions that run on the devices: how they are sent, and what comes back."""
