"""`python -m app` is `chatledger`."""

import sys

from app.cli import main

sys.exit(main())
