"""Attempts from their arrival at a worker to their results."""
