"""Channels and their connections to Kommo accounts, as they are in force."""
