"""A file that is gzip, known by how it begins, is unpacked while it comes in; any other passes as it is."""

import zlib
from collections.abc import Iterator

MAGIC = b"\x1f\x8b"
GZIP_BITS = 31  # zlib's number for "with the header of gzip".
PIECE_BYTES = 1024 * 1024


class DamagedGzip(ValueError):
    """The file begins as gzip, and does not go on so; the message says what to do."""


class Gunzip:
    """Unpacks one file, of one or more members."""

    def __init__(self) -> None:
        self._begin = b""
        self._packed: bool | None = None
        self._member = zlib.decompressobj(GZIP_BITS)

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """What the next piece of the file holds, a megabyte at a time; raises DamagedGzip."""
        if self._packed is None:
            self._begin += piece
            if len(self._begin) < len(MAGIC):
                return
            self._packed, piece, self._begin = self._begin.startswith(MAGIC), self._begin, b""
        yield from self._unpacked(piece) if self._packed else (piece,)

    def end(self) -> Iterator[bytes]:
        """What is left when the file has ended; raises DamagedGzip if that was too early."""
        if self._packed is None:
            yield self._begin
        while self._packed and not self._member.eof:
            if not (left := self._member.decompress(b"", PIECE_BYTES)):
                raise DamagedGzip("the gzip file ends early: send the whole file")
            yield left

    def _unpacked(self, piece: bytes) -> Iterator[bytes]:
        try:
            while piece:
                if self._member.eof:  # Another member, or the padding that some programs append.
                    if not (piece := piece.lstrip(b"\0")):
                        return
                    self._member = zlib.decompressobj(GZIP_BITS)
                yield self._member.decompress(piece, PIECE_BYTES)
                piece = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        except zlib.error as error:
            raise DamagedGzip(f"the gzip file is damaged ({error}): send it again") from None
