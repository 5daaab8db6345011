"""The settings page of an account's administrator: who may open it, what it shows and does."""
