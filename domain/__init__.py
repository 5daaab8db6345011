"""What is true: events, commands, decide and evolve; pure, so that replay never lies."""
