"""The demo messenger."""
