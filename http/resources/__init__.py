"""REST resources, one file a noun."""
