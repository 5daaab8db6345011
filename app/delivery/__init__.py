"""Pushes what the ledger says must be pushed, once and in order, or parks it visibly."""
