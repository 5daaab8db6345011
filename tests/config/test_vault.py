"""What 0.2.1 sealed can be opened, what is sealed names its key, and nobody else opens either."""

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.channels.directory import Secrets
from app.kommo.crm.oauth import Pair
from app.vault import NONCE_BYTES, Vault, WrongMasterKey, kid_in, kid_of

MASTER, NEW = b"k" * 32, b"n" * 32
KID = "3f8910195cd4551e"
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


def test_a_sealed_value_names_its_key_and_keeps_its_bytes() -> None:
    """Later versions open what this one seals: the shape is mark, kid, nonce and ciphertext."""
    sealed = Vault(MASTER).seal("shop", SECRETS)
    assert sealed[:12].hex() == "00636c76" + KID
    assert (kid_in(sealed), kid_of(MASTER), kid_in(SEALED_SECRETS)) == (KID, KID, None)
    nonce, rest = sealed[12 : 12 + NONCE_BYTES], sealed[12 + NONCE_BYTES :]
    assert AESGCM(MASTER).decrypt(nonce, rest, sealed[:12] + b"shop") == msgspec.json.encode(SECRETS)


def test_any_of_several_keys_opens_and_the_first_seals() -> None:
    new, both = Vault(NEW), Vault(NEW, MASTER)
    for sealed in (SEALED_SECRETS, Vault(MASTER).seal("shop", SECRETS), new.seal("shop", SECRETS)):
        assert both.open("shop", sealed, Secrets, subject="the secrets") == SECRETS
    assert new.open("shop", both.seal("shop", SECRETS), Secrets, subject="the secrets") == SECRETS
    with pytest.raises(WrongMasterKey, match=rf"kid {KID}; ours is {kid_of(NEW)}"):
        new.open("shop", Vault(MASTER).seal("shop", SECRETS), Secrets, subject="the secrets")


def test_a_value_that_was_changed_is_told_apart_from_another_key() -> None:
    sealed = bytearray(Vault(MASTER).seal("shop", SECRETS))
    sealed[-1] ^= 1
    with pytest.raises(WrongMasterKey, match="changed since: put the row back"):
        Vault(MASTER).open("shop", bytes(sealed), Secrets, subject="the secrets")


def test_a_vault_takes_up_a_key_that_another_process_has_made() -> None:
    now = [MASTER]
    vault = Vault(MASTER, reload=lambda: now)
    now.insert(0, NEW)
    assert kid_in(vault.seal("shop", SECRETS)) == kid_of(NEW)
    now.clear()  # The files cannot be read for a moment: the keys stay.
    assert kid_in(vault.seal("shop", SECRETS)) == kid_of(NEW)
    assert vault.open("shop", SEALED_SECRETS, Secrets, subject="the secrets") == SECRETS


def test_the_same_value_is_never_sealed_alike() -> None:
    vault = Vault(MASTER)
    assert vault.seal("shop", SECRETS) != vault.seal("shop", SECRETS)


@pytest.mark.parametrize(("master", "name"), [(b"q" * 32, "shop"), (MASTER, "bar")])
def test_another_key_or_owner_opens_nothing(master: bytes, name: str) -> None:
    with pytest.raises(WrongMasterKey, match=r"^the secrets of bar were sealed .* CHATLEDGER_MASTER_KEY"):
        Vault(master).open(name, SEALED_SECRETS, Secrets, subject="the secrets of bar")
