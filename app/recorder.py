"""Keeps the documented topic `app.recorder:LedgerRecorder` of programs on the eventsourcing library."""

from app.ledger.recorder import LedgerRecorder, open_recorder

__all__ = ["LedgerRecorder", "open_recorder"]
