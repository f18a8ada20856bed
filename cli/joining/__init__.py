"""What makes a device with nothing but Python a worker."""
