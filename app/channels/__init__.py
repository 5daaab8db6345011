"""Channels and their connections to Kommo accounts."""
