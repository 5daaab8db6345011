"""What 0.2.1 sealed can be opened, what is sealed now it could open, and nobody else opens either."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.channels.directory import Secrets
from app.kommo.crm.oauth import Pair
from app.vault import NONCE_BYTES, Vault, WrongMasterKey

MASTER = b"k" * 32
SECRETS = Secrets("chat", "hook", "old", 7)
PAIR = Pair("acc", "ref", 3600)

# Written by chatledger 0.2.1, under the names "shop" and "tokens:a1".
SEALED_SECRETS = bytes.fromhex(
    "34a09738daf5c8a4554d10623115db9363215b8f9321153270c8b2e3f8f2d8dcaa4949feb7d76d0a37ea5f91184e4c3d"
    "9d4b3340454f56b63794cac2835faab5456accc1de887b24d1bb09d3391eafe6334051717420295f915e94e105ff5ce5"
    "30dc2c"
)
SEALED_PAIR = bytes.fromhex(
    "5650f3ae732407265154fb0d58c11853534055e1a3af736f1a34b2f86b49ea50c9f0c2cf2c7a7711f9dd0f165376d94c"
    "a1ac1a6204d5726ab063613053a12394ea768afbc72d91a6e7b5372735df9c54ec5fad4bed5528e5e104"
)


def test_a_value_that_an_older_version_sealed_is_opened() -> None:
    vault = Vault(MASTER)
    assert vault.open("shop", SEALED_SECRETS, Secrets, subject="the secrets") == SECRETS
    assert vault.open("tokens:a1", SEALED_PAIR, Pair, subject="the tokens") == PAIR


def test_a_sealed_value_keeps_its_bytes_so_that_an_older_version_opens_it() -> None:
    sealed = Vault(MASTER).seal("shop", SECRETS)
    nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    assert AESGCM(MASTER).decrypt(nonce, rest, b"shop") == (
        b'{"kommo":"chat","messenger":"hook","previous":"old","previous_until":7}'
    )


def test_the_same_value_is_never_sealed_alike() -> None:
    vault = Vault(MASTER)
    assert vault.seal("shop", SECRETS) != vault.seal("shop", SECRETS)


@pytest.mark.parametrize(("master", "name"), [(b"q" * 32, "shop"), (MASTER, "bar")])
def test_another_key_or_owner_opens_nothing(master: bytes, name: str) -> None:
    with pytest.raises(WrongMasterKey, match=r"^the secrets of bar were sealed .* CHATLEDGER_MASTER_KEY"):
        Vault(master).open(name, SEALED_SECRETS, Secrets, subject="the secrets of bar")
