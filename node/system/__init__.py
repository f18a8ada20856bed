"""What the operating system gives: process trees, limits, shared memory, folders of tasks."""
