"""The views: their tables as SQL text, and pure functions from events to statements; nothing is executed."""
