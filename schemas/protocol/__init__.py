"""The wire: frames, messages and batches between processes."""
