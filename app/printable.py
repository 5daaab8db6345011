"""Text of strangers where a person reads it: log lines, the command line, reports.

A terminal obeys control characters: an escape sequence in a customer's text could hide or forge what an
operator sees, a newline could forge a log line, and characters that turn the reading direction could make an
address look like another. Each stands as its escape instead, `\\x1b` or `\\u202e`; all else stays as it is.
"""

import logging
import re

# C0, DEL and C1; the line and paragraph separators; what turns the reading direction; halves of a character.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def printable(text: str) -> str:
    """Returns the text with every control character as its escape, so that it is one harmless line."""
    return CONTROLS.sub(_escape, text)


class PrintableFormatter(logging.Formatter):
    """Escapes what is logged: only an entry begins at the left margin, a traceback is indented below it."""

    def __init__(self) -> None:
        super().__init__(FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The entry without its traceback, in one line."""
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """The entry with its traceback, whose last lines may quote a stranger."""
        entry, *trace = super().format(record).split("\n")
        return "\n".join([entry, *(f"  {printable(line)}" for line in trace)])


def _escape(found: re.Match[str]) -> str:
    number = ord(found.group())
    return {9: "\\t", 10: "\\n", 13: "\\r"}.get(
        number, f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
    )
