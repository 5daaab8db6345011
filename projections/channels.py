"""The channels and their connections to accounts, as last recorded; secrets are not in the views."""

from collections.abc import Iterator

from domain.events import ChannelChanged, ChannelConnected, ChannelDisconnected, ChannelRegistered, encode
from projections.columns import STAND_STILL, Page, Statement, plain

NAME = "channels"
VERSION = 3

SCHEMA = """
CREATE TABLE channels (name text PRIMARY KEY, channel_id text NOT NULL, kind text NOT NULL, url text NOT NULL,
  bot_id text, options jsonb NOT NULL, position bigint NOT NULL);
CREATE TABLE connections (channel text NOT NULL, account_id text NOT NULL, scope_id text NOT NULL,
  title text NOT NULL, is_time_window_disabled boolean NOT NULL, connected boolean NOT NULL,
  connected_at timestamptz NOT NULL, position bigint NOT NULL, PRIMARY KEY (channel, account_id));
"""
# Every process asks for the last change several times a second.
INDEXES = "CREATE INDEX connections_position ON connections (position);"

# These few rows decide whose hooks are taken and where messages go. A mix that leaves out one change was
# never in force, so the view stays at what was in force last, and later changes are answered 503.
ON_FAULT = STAND_STILL
TOPICS = ("channel.",)

REGISTER = """
INSERT INTO channels AS c (name, channel_id, kind, url, bot_id, options, position)
VALUES (%b::text, %b::text, %b::text, %b::text, %b::text, %b::text::jsonb, %b::bigint)
ON CONFLICT (name) DO UPDATE SET channel_id = excluded.channel_id, kind = excluded.kind, url = excluded.url,
  bot_id = excluded.bot_id, options = excluded.options, position = excluded.position
"""
CHANGE = """
UPDATE channels SET url = %b::text, bot_id = %b::text, options = %b::text::jsonb, position = %b::bigint
WHERE name = %b::text
"""
CONNECT = """
INSERT INTO connections AS c (channel, account_id, scope_id, title, is_time_window_disabled, connected,
  connected_at, position)
VALUES (%b::text, %b::text, %b::text, %b::text, %b::text::boolean, true, %b::text::timestamptz, %b::bigint)
ON CONFLICT (channel, account_id) DO UPDATE SET scope_id = excluded.scope_id, title = excluded.title,
  is_time_window_disabled = excluded.is_time_window_disabled, connected = true,
  connected_at = excluded.connected_at, position = excluded.position
"""
DISCONNECT = """
UPDATE connections SET connected = false, position = %b::bigint
WHERE channel = %b::text AND account_id = %b::text
"""


_TYPES = {ChannelRegistered, ChannelChanged, ChannelConnected, ChannelDisconnected}


def project(page: Page) -> Iterator[Statement]:
    """Yield one statement per event, because these events are rare."""
    for position, event in page:
        if type(event) not in _TYPES:
            continue
        match event:
            case ChannelRegistered(channel_id=channel_id, kind=kind, url=url):
                names = (event.channel, plain(channel_id), kind, plain(url), event.bot_id)
                yield REGISTER, (*names, encode(event.options).decode(), position)
            case ChannelChanged(url=url, bot_id=bot_id):
                options = encode(event.options).decode()
                yield CHANGE, (plain(url), bot_id, options, position, event.channel)
            case ChannelConnected(scope_id=scope_id, title=title, at=at):
                disabled = "true" if event.is_time_window_disabled else "false"
                yield CONNECT, (event.channel, event.account, scope_id, plain(title), disabled, at, position)
            case ChannelDisconnected():
                yield DISCONNECT, (position, event.channel, event.account)
