"""Settings, their loading, and logging."""
