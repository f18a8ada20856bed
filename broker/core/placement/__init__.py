"""Which queued task goes to which device, and which devices are passed over for it."""
