"""Settings, keys and the --config file."""
