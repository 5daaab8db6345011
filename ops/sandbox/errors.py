"""Orders that cannot be carried out."""


class Impossible(Exception):
    """The order cannot be carried out: an HTTP status and what to do about it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text
