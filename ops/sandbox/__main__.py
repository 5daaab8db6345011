"""`python -m ops.sandbox` is the same as `chatledger sandbox`."""

from ops.sandbox.cli import sandbox

sandbox()
