"""Processes of the benchmarks: clients at full speed, and the services that they and ours call."""
