"""DOC"""

NONCE_BYTES = 12


class WrongMasterKey(Exception):
    """The secrets in the database were sealed with another master key: set CHATLEDGER_MASTER_KEY to it."""
