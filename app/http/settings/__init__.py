"""The settings page of an account's administrator."""
