"""The register of sealed values: each column of the database that the vault seals, and how each is named.

A rotation of the master key and the check of the key go through all of them, so a new sealed column belongs
here; a test compares the list with the tables.
"""

from collections.abc import AsyncIterator
from typing import cast

from msgspec import Struct
from psycopg import sql

from app.database.connection import Db
from app.database.names import LEDGER_SCHEMA

PAGE = 100  # chosen: a page is read at once, and its rows are written one by one


class Place(Struct, frozen=True):
    """A column `sealed` of a table of the schema `ledger`.

    `prefix` and the row's `key` make its owner's name, `words` and the key name the row for people.
    """

    table: str
    key: str
    prefix: str
    words: str


class SealedRow(Struct, frozen=True):
    """A sealed value and where it stands."""

    place: Place
    key: str
    sealed: bytes

    @property
    def name(self) -> str:
        """The owner's name, which is authenticated."""
        return self.place.prefix + self.key

    @property
    def subject(self) -> str:
        """The row for people."""
        return f"{self.place.words} {self.key}"


SECRETS = Place("secrets", "channel", "", "the secrets of channel")
TOKENS = Place("tokens", "account_id", "tokens:", "the tokens of account")
KEYRING = Place("keyring", "name", "keyring:", "the ledger's key of")
CREDENTIALS = Place("credentials", "connection", "credentials:", "the messenger's credentials of")
PLACES = (KEYRING, SECRETS, TOKENS, CREDENTIALS)

ROWS = """SELECT {key}, sealed FROM {table} WHERE sealed <> '' AND {key} > %s
 AND substring(sealed FOR %s) <> %s ORDER BY {key} LIMIT %s"""
REPLACE = "UPDATE {table} SET sealed = %s WHERE {key} = %s AND sealed = %s"


async def rows(db: Db, *, without: bytes = b"") -> AsyncIterator[SealedRow]:
    """All sealed values, without those that begin with `without`; withdrawn tokens are not sealed."""
    head = without or b"all"  # Of another length than what is compared with it, so equal to nothing.
    length = len(without)
    for place in PLACES:
        after = ""
        while True:
            cursor = await db.execute(_statement(ROWS, place), (after, length, head, PAGE))
            page = cast("list[tuple[str, bytes]]", await cursor.fetchall())
            for key, sealed in page:
                yield SealedRow(place, key, sealed)
            if len(page) < PAGE:
                break
            after = page[-1][0]


async def replace(db: Db, row: SealedRow, sealed: bytes) -> bool:
    """Put another sealed value in the row's place; False if it changed since it was read."""
    cursor = await db.execute(_statement(REPLACE, row.place), (sealed, row.key, row.sealed))
    return cursor.rowcount == 1


def _statement(text: str, place: Place) -> sql.Composed:
    table = sql.Identifier(LEDGER_SCHEMA, place.table)
    return sql.SQL(text).format(table=table, key=sql.Identifier(place.key))
