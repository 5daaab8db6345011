"""A login link signs one browser in to the console, once, within ten minutes of being made."""

import secrets
import time

LINK_SECONDS = 600.0  # Chosen: long enough to copy a link from a terminal, short enough to forget it.
TOKEN_BYTES = 24


class LoginLinks:
    """The links of this process that are still good. `expiries` are in monotonic seconds, by token."""

    def __init__(self) -> None:
        self.expiries: dict[str, float] = {}

    def make(self, url: str) -> str:
        """A new link to the console at `url`."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        self.expiries[token] = time.monotonic() + LINK_SECONDS
        return f"{url}/login?token={token}"

    def use(self, token: str) -> bool:
        """Whether the token is good; a second use is not."""
        return self.expiries.pop(token, 0.0) > time.monotonic()
