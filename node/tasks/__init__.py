"""One file a task type: its payload check and what it does."""
