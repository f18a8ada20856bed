"""The umbrella command, the supervisor and services."""
