"""The register of names that processes share in one database: schemas, the role, the NOTIFY channel, locks.

PostgreSQL keeps two separate spaces of advisory locks per database: one 64-bit key, or two 32-bit keys. Each
of our numbers stands here and only here. Most begin with `chat` in ASCII (0x63686174), which keeps them apart
from other programs' locks. Never change a number: processes of two versions may run at the same time.
"""

LEDGER_SCHEMA = "ledger"
VIEWS_SCHEMA = "views"
VIEWS_NEXT_SCHEMA = "views_next"  # where a rebuild makes the views that will replace those in force
EVENTS = "stored_events"
ROLE = "chatledger"  # the role that the service works as: it may append, and change nothing
CHANNEL = "ledger_stored_events"  # notified by each append; the eventsourcing library uses this name too

APPEND_LOCK = 0x6368_6174_0001  # one append at a time, so that positions have no gaps
MIGRATE_LOCK = 0x6368_6174_0002  # one migration at a time
PROJECT_LOCK = 0x6368_6174_0003  # one projector
RELAY_LOCK = 0x6368_6174_0004  # one relay
CONNECT_LOCK = 0x6368_6174_0005  # one process connects, at its start, what the configuration lists
ROTATE_LOCK = 0x6368_6174_0008  # one rotation of the master key at a time
REBUILD_LOCK = 0x6368_6174_0103  # one rebuild of the views at a time
PARTITION_LOCK = 0x6368_6174_1000  # plus the number of a range of partitions: one deliverer per range

# Locks of two keys: the number here and a hash of what is locked.
IMPORT_LOCK = 0x6368_6174  # and a channel with an account: one import into them at a time
CONNECTION_LOCK = 0x6368_0002  # and a channel with an account: one of those who connect or disconnect it
TOKEN_LOCK = 0x6368_0001  # and an account: one refresh of its tokens at a time
