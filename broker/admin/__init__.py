"""The admin socket: the operations of tooling and of REST facades."""
