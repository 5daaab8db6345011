"""How fast it is, measured on this machine against something else on this machine in the same run."""
