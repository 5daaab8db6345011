"""A login link signs one browser in, once, within ten minutes; the demo's link does as often as wanted."""

import math
import secrets
import time

LINK_SECONDS = 600.0  # Chosen: long enough to copy a link from a terminal, short enough to forget it.
TOKEN_BYTES = 24


class LoginLinks:
    """The links of this process that are still good. `expiries` are in monotonic seconds, by token."""

    def __init__(self) -> None:
        self.expiries: dict[str, float] = {}

    def make(self, url: str, *, lasting: bool = False) -> str:
        """A new link to the console at `url`; a lasting one is good as often as wanted, until we end."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        self.expiries[token] = math.inf if lasting else time.monotonic() + LINK_SECONDS
        return f"{url}/login?token={token}"

    def use(self, token: str) -> bool:
        """Whether the token is good; a second use is not, unless the link is a lasting one."""
        if self.expiries.get(token) == math.inf:
            return True
        return self.expiries.pop(token, 0.0) > time.monotonic()
