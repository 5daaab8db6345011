"""Checks an installation, one sentence per check."""
