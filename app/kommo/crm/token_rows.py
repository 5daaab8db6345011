"""The statements about `ledger.tokens` and `ledger.consents`; `tokens` says what they keep true."""

LOCK_TIMEOUT = "SET LOCAL lock_timeout = '30s'"  # Chosen: three times what one call to Kommo may take.
# The transaction is idle while Kommo answers, and must outlive whatever the server's default is.
NO_IDLE_TIMEOUT = "SET LOCAL idle_in_transaction_session_timeout = 0"
LOCK = "SELECT pg_advisory_xact_lock(%s, hashtext(%s))"
OF_ANSWER = "SELECT account_id FROM ledger.tokens WHERE answer = %(answer)s AND state = 'authorized'"
COLUMNS = """SELECT account_id, crm_id, crm_url, sealed, extract(epoch FROM expires_at)::float8 AS expires,
 state, reason, generation, ended FROM ledger.tokens"""
ONE = f"{COLUMNS} WHERE account_id = %(account)s"
ALL = f"{COLUMNS} ORDER BY account_id"
OF_CRM = f"{COLUMNS} WHERE crm_id = %(crm_id)s ORDER BY account_id LIMIT 1"
SAVE = """INSERT INTO ledger.tokens AS t
 (account_id, crm_id, crm_url, sealed, expires_at, state, reason, generation, answer, configured_url)
 VALUES (%(account)s, %(crm_id)s, %(crm_url)s, %(sealed)s, to_timestamp(%(expires)s), 'authorized', '', 1,
 %(answer)s, %(configured)s)
 ON CONFLICT (account_id) DO UPDATE SET crm_id = excluded.crm_id, crm_url = excluded.crm_url,
 sealed = excluded.sealed, expires_at = excluded.expires_at, state = excluded.state, reason = '',
 generation = t.generation + 1, answer = excluded.answer, configured_url = excluded.configured_url,
 ended = false"""
RENEW = """UPDATE ledger.tokens SET sealed = %(sealed)s, expires_at = to_timestamp(%(expires)s),
 crm_url = %(crm_url)s, generation = generation + 1
 WHERE account_id = %(account)s AND generation = %(generation)s"""
WITHDRAW = """UPDATE ledger.tokens SET sealed = '', state = 'withdrawn', reason = %(reason)s,
 generation = generation + 1, answer = NULL, ended = false WHERE account_id = %(account)s"""
END = """UPDATE ledger.tokens SET ended = true
 WHERE account_id = %(account)s AND generation = %(generation)s AND state = 'withdrawn'"""
MOVE = """UPDATE ledger.tokens SET crm_url = %(crm_url)s WHERE account_id = %(account)s
 AND crm_url = %(before)s"""
ADOPT = """UPDATE ledger.tokens SET crm_url = %(crm_url)s, configured_url = %(crm_url)s
 WHERE account_id = %(account)s"""
TO_ADOPT = """SELECT t.account_id FROM ledger.tokens AS t
 JOIN unnest(%(accounts)s::text[], %(urls)s::text[]) AS f(account_id, url) USING (account_id)
 WHERE t.configured_url IS DISTINCT FROM f.url"""
DELETE_STATES = "DELETE FROM ledger.consents WHERE expires_at < now()"
USE_STATE = """INSERT INTO ledger.consents (nonce, expires_at) VALUES (%(nonce)s, to_timestamp(%(expires)s))
 ON CONFLICT (nonce) DO NOTHING"""
