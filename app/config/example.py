"""A complete file for `--config` with every line explained; a test loads it, so it is always valid."""

EXAMPLE = """\
# chatledger: everything an integrator writes down. Use it with: chatledger --config chatledger.toml serve
# Any text may be "env:NAME": then the value is that of the variable NAME, and this file holds no secret.
# A setting CHATLEDGER_… in the environment wins over the one here. Check it all: chatledger --config … doctor

CHATLEDGER_PUBLIC_URL = "https://chat.example.com"   # under which all others reach us
CHATLEDGER_PORT = 8080                               # where HTTP listens, behind a reverse proxy with TLS
# CHATLEDGER_TRUSTED_PROXIES = "127.0.0.1"           # whose X-Forwarded-For and -Proto we believe: that proxy
# CHATLEDGER_DATA = "/var/lib/chatledger"            # keys, and private servers without these URLs:
# CHATLEDGER_DATABASE_URL = "postgresql://chatledger_service:PASSWORD@db.example.com/chatledger"
# CHATLEDGER_UNCONNECTED_LIMIT = 10000               # kept for an account that is not connected yet, each,
# CHATLEDGER_UNCONNECTED_DAYS = 7                    # and for so long
# CHATLEDGER_ACCESS_DAYS = 90                        # how long it is kept who looked
# CHATLEDGER_ACCOUNT_RATE = 20000                    # actions a second of one account's messenger,
# CHATLEDGER_ACCOUNT_BYTES = 67108864                # their bytes a second,
# CHATLEDGER_ACCOUNT_OPEN = 100000                   # and its deliveries that are open: beyond, it gets 429
# CHATLEDGER_NATS_URL = "nats://chatledger:PASSWORD@nats.example.com:4222"

# A channel is what Kommo's support registers for you. Tell it the hook address, version v2:
#   https://chat.example.com/kommo/:scope_id
[[channels]]
name = "acme"                                        # a to z, digits, hyphens; in our URLs
message_ids = "per channel"                          # "per conversation": ids like 57 occur in several chats
# default_account = "52e591f7-c98f-4255-8495-827210138c81"  # of several: for a new chat without account_id

[channels.kommo]
channel_id = "344a5002-f8ca-454d-af3d-396180102ac7"  # these three come from Kommo's support
secret = "env:ACME_CHANNEL_SECRET"
bot_id = "b07b07b0-0000-4000-8000-000000000001"      # may be left out

[channels.messenger]
kind = "webhook"
url = "https://messenger.example.com/chatledger"     # takes message.send, typing and reactions
secret = "env:ACME_MESSENGER_SECRET"                 # whsec_… of Standard Webhooks, for both directions

# Accounts that the channel shall be connected to, by their amojo_id: GET /api/v4/account?with=amojo_id
[[channels.connections]]
account_id = "52e591f7-c98f-4255-8495-827210138c81"
title = "Acme chat"                                  # what managers see; may be left out
# is_time_window_disabled = true                     # managers may write at any time

# The integration, from its page in Kommo. Needed for contacts, leads, users, sources, templates and talks.
[oauth]
client_id = "11111111-2222-3333-4444-555555555555"
client_secret = "env:KOMMO_CLIENT_SECRET"
redirect_url = "https://chat.example.com/oauth/callback"
# authorize_url = "https://www.kommo.com/oauth"
# domains = ["kommo.com", "amocrm.ru", "amocrm.com"]  # below which the CRM of any account is

# What an account gets whose administrator installs the integration, from Kommo or from /install. Without this
# table only those accounts come in that you ask.
[install]
channels = ["acme"]
title = "Acme chat"                                  # what its managers see; may be left out
source = { name = "Acme" }                           # its default source; pipeline_id may be given, too
allow = "any"                                        # or a list of subdomains: ["acme", "beta"]
# webhooks = false                                   # talks, leads and contacts do not come to us

# Accounts that let us into their CRM, and where that is.
[[accounts]]
account_id = "52e591f7-c98f-4255-8495-827210138c81"
crm_url = "https://acme.kommo.com"

# Calls a second that one account's Kommo takes from all our processes together.
[budgets]
crm_per_second = 7.0                                 # as Kommo documents it
chats_per_second = 500.0                             # where it begins; Kommo's answers change it
# ask_for_chats = false                              # a new conversation's chat in Kommo: only hooks name it
"""
