"""Client library for the REST interface."""
