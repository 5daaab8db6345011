"""What can be asked: SQL text and pure functions from events to statements; executes nothing."""
