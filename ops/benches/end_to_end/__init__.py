"""Figures of messages from one side to the other."""
