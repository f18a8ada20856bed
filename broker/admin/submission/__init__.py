"""The way of a submission: read, check, batch, make, answer."""
