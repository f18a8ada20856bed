"""Read what requests carry, and write what answers carry."""
