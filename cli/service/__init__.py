"""Parts of the cluster as services of the system."""
