"""The questions put to the views: each reads a page by an index and stops, however long the ledger is."""

HEAD = "SELECT coalesce(max(notification_id), 0) AS head FROM ledger.stored_events"
VIEWS = 'SELECT "view", position FROM positions ORDER BY "view"'
COUNTS = "SELECT state, count(*) AS count, min(position) AS oldest FROM deliveries GROUP BY state"
CHANNELS = "SELECT name, channel_id, kind, url, bot_id, position FROM channels ORDER BY name"
CONNECTIONS = """
SELECT channel, account_id, scope_id, title, connected, is_time_window_disabled, position,
  to_char(connected_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS connected_at
FROM connections WHERE %(channel)s::text IS NULL OR channel = %(channel)s::text ORDER BY channel, account_id
"""

_CONVERSATION = """
SELECT c.id::text, c.channel, c.account_id, c.conversation_id, c.chat_id, c.contact_id, c.lead_id, c.messages,
  c.position, to_char(c.last_message_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS last_message_at,
  m.outgoing, m.content, m.status, m.deleted
"""
_LATEST = """
LEFT JOIN LATERAL (SELECT outgoing, content, status, deleted FROM messages WHERE conversation = c.id
  ORDER BY position DESC LIMIT 1) AS m ON true
"""
CONVERSATION = "".join(
    (
        _CONVERSATION,
        "FROM conversations AS c",
        _LATEST,
        "WHERE c.id = coalesce((SELECT winner FROM merges WHERE loser = %(id)s::uuid), %(id)s::uuid)",
    )
)
CONVERSATIONS = "".join(
    (
        _CONVERSATION,
        """
FROM (SELECT * FROM conversations
  WHERE (%(channel)s::text IS NULL OR channel = %(channel)s::text)
  AND (%(account_id)s::text IS NULL OR account_id = %(account_id)s::text)
  AND (%(conversation_id)s::text IS NULL OR conversation_id = %(conversation_id)s::text)
  AND (%(chat_id)s::text IS NULL OR chat_id = %(chat_id)s::text)
  AND (%(position)s::bigint IS NULL OR (position, id) < (%(position)s::bigint, %(id)s::uuid))
  ORDER BY position DESC, id DESC LIMIT %(limit)s::bigint) AS c
""",
        _LATEST,
        "ORDER BY c.position DESC, c.id DESC",
    )
)

_MESSAGE = """
SELECT m.id::text, m.position, m.conversation::text, m.channel, m.account_id, m.outgoing, m.sent_by,
  m.own_id, m.remote_id, m.copy_id, m.content, m.sender, m.receiver, m.source, m.silent, m.imported, m.status,
  m.failure_code, m.failure_text, m.deleted, to_char(m.sent_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS sent_at,
  to_char(m.recorded_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS recorded_at,
  to_char(m.edited_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS edited_at,
  (SELECT json_agg(json_build_object('emoji', r.emoji, 'by', r."by", 'sender_id', r.sender_id,
      'at', to_char(r.at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')) ORDER BY r.at, r.event)::text
    FROM reactions AS r WHERE r.message = m.id AND NOT r.removed) AS reactions
FROM messages AS m
"""
_IN_CONVERSATION = """
WHERE m.conversation = coalesce((SELECT winner FROM merges WHERE loser = %(conversation)s::uuid),
  %(conversation)s::uuid)
"""
MESSAGE = "".join((_MESSAGE, "WHERE m.id = %(id)s::uuid"))
MESSAGES = "".join(
    (
        _MESSAGE,
        _IN_CONVERSATION,
        "AND m.position > %(position)s::bigint ORDER BY m.position LIMIT %(limit)s::bigint",
    )
)
MESSAGES_DESCENDING = "".join(
    (
        _MESSAGE,
        _IN_CONVERSATION,
        "AND m.position < %(position)s::bigint ORDER BY m.position DESC LIMIT %(limit)s::bigint",
    )
)

STREAM = """
SELECT notification_id AS position, state AS event FROM ledger.stored_events
WHERE originator_id = %(stream)s::uuid ORDER BY originator_version
"""
LEDGER_PAGE = """
SELECT notification_id AS position, state AS event FROM ledger.stored_events
WHERE notification_id > %(after)s::bigint ORDER BY notification_id LIMIT %(limit)s::bigint
"""
PLACES = """
SELECT id FROM places WHERE (%(channel)s::text IS NULL OR channel = %(channel)s::text)
  AND (%(account)s::text IS NULL OR account = %(account)s::text)
"""
PERIOD_RANGE = """
SELECT min(period) AS low, max(period) AS high FROM periods
WHERE (%(since)s::timestamptz IS NULL OR high >= %(since)s::timestamptz)
  AND (%(until)s::timestamptz IS NULL OR low < %(until)s::timestamptz)
"""
EVENTS = """
SELECT e.notification_id AS position, e.state AS event FROM (
  SELECT position FROM events
  WHERE position > %(after)s::bigint AND position >= %(low)s::bigint AND position <= %(high)s::bigint
    AND (%(kind)s::smallint IS NULL OR kind = %(kind)s::smallint)
    AND (%(place)s::bigint IS NULL OR place = %(place)s::bigint)
    AND (%(places)s::bigint[] IS NULL OR place = ANY (%(places)s::bigint[]))
    AND (%(since)s::timestamptz IS NULL OR recorded_at >= %(since)s::timestamptz)
    AND (%(until)s::timestamptz IS NULL OR recorded_at < %(until)s::timestamptz)
  ORDER BY position LIMIT %(limit)s::bigint) AS p
JOIN ledger.stored_events AS e ON e.notification_id = p.position ORDER BY p.position
"""
# A conversation's events are its own and those of the ones merged into it, whichever of them was asked for.
EVENTS_OF_CONVERSATION = """
WITH asked AS (
  SELECT coalesce((SELECT winner FROM merges WHERE loser = %(conversation)s::uuid),
    %(conversation)s::uuid) AS id)
SELECT e.notification_id AS position, e.state AS event FROM (
  SELECT f.position FROM (SELECT id FROM asked UNION ALL
    SELECT g.loser FROM merges AS g JOIN asked ON g.winner = asked.id) AS c
  CROSS JOIN LATERAL (SELECT position FROM events
    WHERE conversation = c.id
      AND position > %(after)s::bigint AND position >= %(low)s::bigint AND position <= %(high)s::bigint
      AND (%(kind)s::smallint IS NULL OR kind = %(kind)s::smallint)
      AND (%(place)s::bigint IS NULL OR place = %(place)s::bigint)
      AND (%(places)s::bigint[] IS NULL OR place = ANY (%(places)s::bigint[]))
      AND (%(since)s::timestamptz IS NULL OR recorded_at >= %(since)s::timestamptz)
      AND (%(until)s::timestamptz IS NULL OR recorded_at < %(until)s::timestamptz)
    ORDER BY position LIMIT %(limit)s::bigint) AS f
  ORDER BY f.position LIMIT %(limit)s::bigint) AS p
JOIN ledger.stored_events AS e ON e.notification_id = p.position ORDER BY p.position
"""

DELIVERIES = """
SELECT position, id::text, type, destination, channel, account_id, conversation::text, message::text, state,
  reason, attempts, updated, to_char(recorded_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS recorded_at
FROM deliveries WHERE position > %(after)s::bigint
  AND (%(state)s::text IS NULL OR state = %(state)s::text)
  AND (%(destination)s::text IS NULL OR destination = %(destination)s::text)
  AND (%(channel)s::text IS NULL OR channel = %(channel)s::text)
  AND (%(account_id)s::text IS NULL OR account_id = %(account_id)s::text)
  AND (%(conversation)s::uuid IS NULL OR conversation = %(conversation)s::uuid)
ORDER BY position LIMIT %(limit)s::bigint
"""
REFUSED = """
SELECT id::text, scope_id, to_char(received_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS received_at, reason, body
FROM ledger.refused ORDER BY received_at DESC, id LIMIT %(limit)s::bigint
"""
