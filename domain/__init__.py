"""Events, commands, decide and evolve: the rules of what is true, pure, so that a replay always agrees."""
