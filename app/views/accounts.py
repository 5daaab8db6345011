"""Which rows of a view are an account's: the conditions that every list has.

A channel's messenger may name any account. Until the two are connected for the first time, what it posts is
shown to who asks for the channel, and not to who asks for the account alone.
"""


def connected(table: str, account: str = "account_id") -> str:
    """The condition that a row's channel and account were once connected; `account` is the column."""
    row = f"k.channel = {table}.channel AND k.account_id = {table}.{account}"
    return "".join(("EXISTS (SELECT 1 FROM connections AS k WHERE ", row, ")"))


def of_accounts(table: str) -> str:
    """The conditions for the parameters `channel`, `account_id` and `accounts`, each of which may be null.

    `accounts` are the only ones that a key reaches.
    """
    account, once = f"{table}.account_id", connected(table)
    return f"""
  AND (%(channel)s::text IS NULL OR {table}.channel = %(channel)s::text)
  AND (%(account_id)s::text IS NULL OR {account} = %(account_id)s::text
    AND (%(channel)s::text IS NOT NULL OR {once}))
  AND (%(accounts)s::text[] IS NULL OR {account} = ANY (%(accounts)s::text[]) AND {once})
"""
