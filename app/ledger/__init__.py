"""Commands in, committed events out."""
