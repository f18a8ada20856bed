"""What runs in the task processes, and how trees of processes are seen and ended."""
