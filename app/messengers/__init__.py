"""The messenger port and its kinds."""
