"""Ids, names and secrets of the account, the channel and the people that tests are about."""

import base64

from domain.ids import scope_of, use_namespace

# Tests make ids in their own process, of many ledgers; tests/support/databases.py says how these agree.
use_namespace(None)

CHANNEL = "344a5002-f8ca-454d-af3d-396180102ac7"
ACCOUNT = "52e591f7-c98f-4255-8495-827210138c81"
OTHER_ACCOUNT = "52e591f7-c98f-4255-8495-827210138c82"
SCOPE = scope_of("acme", CHANNEL, ACCOUNT)
SCOPE_ID = SCOPE.scope_id
# The scope of the events in tests/golden.
GOLDEN_SCOPE = scope_of(
    "acme", "f90ba33d-c9d9-44da-b76c-c349b0ecbe41", "af9945ff-1490-4cad-807d-945c15d88bec"
)

CHANNEL_SECRET = "f2d7f8704eff95087ed45b23ba99c0b5aac8278e"
MESSENGER_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BOT = "b07b07b0-0000-4000-8000-000000000001"
MARIA = "0f8f1c5e-7f0a-4c52-9a43-3b1d0c7a1e01"

# The OAuth integration, and the account's number in the CRM.
CLIENT = "7d1a0c3e-2c3b-4f7e-9a55-0c1d2e3f4a5b"
CLIENT_SECRET = "s3cret-of-the-integration-" + "0123456789" * 4  # Kommo makes them of 64 characters.
REDIRECT = "http://127.0.0.1:9/oauth/callback"
CRM_ID = 30_123_456

ADMIN_KEY = "the-admin-key-of-all-tests"
AS_ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
MASTER_BYTES = b"01234567890123456789012345678901"
MASTER_KEY = base64.b64encode(MASTER_BYTES).decode()

# Nothing listens on port 9.
NOWHERE = "http://127.0.0.1:9"
NOBODY = "00000000-0000-4000-8000-000000000000"
