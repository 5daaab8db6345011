"""Who the customer of a conversation is: whoever wrote last, else whom the manager wrote to."""

from msgspec import Struct
from msgspec.json import Decoder

from app.database.pool import Pool
from domain.events import Party

# Of the latest fifty messages, so that a list costs the same however long its chats are.
FACES = """
SELECT c.id::text, m.outgoing, m.sender, m.receiver FROM unnest(%(ids)s::uuid[]) AS c(id)
CROSS JOIN LATERAL (SELECT * FROM (SELECT outgoing, sender, receiver, position FROM messages
    WHERE conversation = c.id ORDER BY position DESC LIMIT 50) AS latest
  ORDER BY outgoing, position DESC LIMIT 1) AS m
"""
MERGED = "SELECT loser::text AS id FROM merges WHERE winner = %(id)s::uuid"
_party = Decoder(Party).decode


class _Row(Struct):
    id: str
    outgoing: bool
    sender: bytes
    receiver: bytes | None


class _Id(Struct):
    id: str


async def faces(pool: Pool, conversations: list[str]) -> dict[str, Party]:
    """The customers of conversations, as far as they are known."""
    if not conversations:
        return {}
    rows = await pool.fetch(_Row, FACES, {"ids": conversations})
    parties = {row.id: row.receiver if row.outgoing else row.sender for row in rows}
    return {id_: _party(party) for id_, party in parties.items() if party}


async def merged_into(pool: Pool, conversation: str) -> set[str]:
    """The conversations that turned out to be this one."""
    return {row.id for row in await pool.fetch(_Id, MERGED, {"id": conversation})}
