"""The HTTP server: waitress, WebSockets, draining."""
