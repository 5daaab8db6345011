"""Orders to the sandbox: what its people do and which faults occur."""
