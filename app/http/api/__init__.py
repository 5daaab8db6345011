"""REST, under /v1."""
