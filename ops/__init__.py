"""What operators and developers run: setup, checks, bench and the sandbox."""
