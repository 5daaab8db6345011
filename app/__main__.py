"""`python -m app` is `chatledger`: the whole program, which `ops.main` puts together."""

import runpy

runpy.run_module("ops.main", run_name="__main__")
