"""One process: its parts wired together and served."""
