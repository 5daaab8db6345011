"""Every name that processes share in one database: schemas, the role, NOTIFY channels and advisory locks.

Advisory locks are one space of 64-bit numbers for the whole database, so each number stands here and only
here. Most share the prefix `chat` in ASCII (0x63686174), which keeps them apart from other programs' locks.
"""

LEDGER = "ledger"
EVENTS = "stored_events"
CHANNEL = "ledger_stored_events"
ROLE = "chatledger"
SCHEMA = "views"
SCHEMA_NEXT = "views_next"
SCHEMA_OLD = "views_old"

APPEND_LOCK = 0x6368_6174_0001
MIGRATE_LOCK = 0x6368_6174_0002
PROJECT_LOCK = 0x6368_6174_0003
RELAY_LOCK = 0x6368_6174_0004
CONNECT_LOCK = 0x6368_6174_0005
REBUILD_LOCK = PROJECT_LOCK + 0x100
# One lock per range of partitions, at this number plus the range's.
PARTITION_LOCK = 0x6368_6174_1000
# The two-key form (int, int): this number and a hash of the channel and account, or of the account.
IMPORT_LOCK = 0x6368_6174
TOKEN_LOCK = 0x6368_0001
