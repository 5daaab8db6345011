"""Brings earlier messages into the ledger."""
