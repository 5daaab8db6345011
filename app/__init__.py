"""chatledger's outside: HTTP, servers, workers and the command line; the only place with I/O."""
