"""What is true: events, commands, decide and evolve; pure."""
