"""Servers with TLS, certificates, nkeys and JWT let us in, and what is wrong is one clear sentence."""

import base64
import binascii
import datetime
import ipaddress
import json
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from app.stream import jetstream
from app.stream.identity import BadIdentity, Identity
from app.stream.jetstream import StreamUnavailable
from tests.support.ledgers.nats_cluster import NatsServer, nats_server
from tests.support.ledgers.stream_ledger import until

SECONDS = 1.0
TLS = 'tls {{ cert_file: "{0}/server.pem", key_file: "{0}/server.key", ca_file: "{0}/ca.pem", verify: {1} }}'
OPERATOR, ACCOUNT, USER = 14 << 3, 0, 20 << 3
SEED = 18 << 3


class Nkey(NamedTuple):
    """A key of NATS: its public name and its seed, as `nsc` and `nk` write them."""

    key: Ed25519PrivateKey
    kind: int

    @property
    def public(self) -> str:
        raw = self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return encoded(bytes([self.kind]) + raw)

    @property
    def seed(self) -> str:
        raw = self.key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        return encoded(bytes([SEED | self.kind >> 5, (self.kind & 31) << 3]) + raw)

    def token(self, subject: "Nkey", name: str, **claims: object) -> str:
        """A JWT that this key signs for another."""
        body = {
            "jti": name,
            "iat": int(time.time()),
            "iss": self.public,
            "name": name,
            "sub": subject.public,
            "nats": {"version": 2, **claims},
        }
        if "expires" in claims:
            body["exp"] = claims.pop("expires")
        parts = [{"typ": "JWT", "alg": "ed25519-nkey"}, body]
        text = ".".join(url64(json.dumps(part).encode()) for part in parts)
        return f"{text}.{url64(self.key.sign(text.encode()))}"


def nkey(kind: int) -> Nkey:
    return Nkey(Ed25519PrivateKey.generate(), kind)


def encoded(body: bytes) -> str:
    check = binascii.crc_hqx(body, 0).to_bytes(2, "little")
    return base64.b32encode(body + check).rstrip(b"=").decode()


def url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def certificates(folder: Path, *names: str) -> None:
    """An authority, and a certificate and key of each name that it has signed."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
    now = datetime.datetime.now(datetime.UTC)

    def certificate(common: str, public: ec.EllipticCurvePublicKey, *, is_ca: bool) -> bytes:
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])
        places = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(places, critical=False)
            .sign(authority, hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )

    (folder / "ca.pem").write_bytes(certificate("test authority", authority.public_key(), is_ca=True))
    for one in names:
        (folder / f"{one}.pem").write_bytes(certificate(one, key.public_key(), is_ca=False))
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{one}.key").write_bytes(pem)
    (folder / "both.pem").write_bytes((folder / "us.pem").read_bytes() + (folder / "us.key").read_bytes())


@pytest.fixture(scope="module")
def folder(session_folder: Path) -> Path:
    """The files of everybody: certificates, seeds and credentials."""
    folder = session_folder / "identity"
    for each in (folder, folder / "strangers"):
        each.mkdir()
        certificates(each, "server", "us")
    (folder / "empty").write_text("")
    return folder


async def lets_in(url: str, identity: Identity | None = None, seconds: float = 5) -> bool:
    """Connect and ask JetStream. Raises what the connection raises."""
    connection = await jetstream.connect(url, name="test", seconds=seconds, identity=identity)
    try:
        return bool(await jetstream.call(connection, "INFO"))
    finally:
        await connection.close()


async def refused(url: str, identity: Identity | None = None) -> str:
    """In what words a connection fails; they hold no secret."""
    with pytest.raises((StreamUnavailable, BadIdentity)) as failure:
        await lets_in(url, identity, SECONDS)
    assert "hidden" not in str(failure.value)
    return str(failure.value)


async def test_tls_is_checked_both_ways(folder: Path) -> None:
    async with nats_server(folder / "tls", TLS.format(folder, "true")) as server:
        url = server.url.replace("nats://", "tls://")
        ca, us = folder / "ca.pem", folder / "us.pem"
        assert await lets_in(url, Identity(ca=ca, certificate=us, key=folder / "us.key"))
        assert await lets_in(url, Identity(ca=ca, certificate=folder / "both.pem"))
        assert "CHATLEDGER_NATS_CA has to name the file of its authority" in await refused(url)
        assert "the server asks for ours" in await refused(url, Identity(ca=ca))
        stranger = Identity(ca=ca, certificate=folder / "strangers" / "both.pem")
        assert "the server does not trust ours" in await refused(url, stranger)


async def test_tls_is_not_given_up_silently(folder: Path) -> None:
    async with nats_server(folder / "plain") as server:
        told = await refused(server.url.replace("nats://", "tls://us:hidden@"))
        assert "the URL begins with tls://, and the server has no TLS" in told


BAD_FILES = {
    "no file": (Identity(credentials=Path("nowhere")), "CHATLEDGER_NATS_CREDENTIALS: nowhere cannot be read"),
    "no seed": (Identity(credentials=Path("empty")), "empty holds no key of a user: give a .creds file"),
    "no authority": (Identity(ca=Path("empty")), "CHATLEDGER_NATS_CA: empty cannot be used"),
    "no ca": (Identity(ca=Path("nowhere")), "CHATLEDGER_NATS_CA: nowhere cannot be read: No such file"),
    "no key": (Identity(certificate=Path("us.pem")), "CHATLEDGER_NATS_CERTIFICATE: us.pem cannot be used"),
    "another key": (
        Identity(certificate=Path("us.pem"), key=Path("strangers/us.key")),
        "CHATLEDGER_NATS_CERTIFICATE: us.pem and strangers/us.key cannot be used (KEY_VALUES_MISMATCH)",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
async def test_a_file_that_cannot_be_used_is_named(folder: Path, case: str) -> None:
    identity, words = BAD_FILES[case]
    given = {name: getattr(identity, name) for name in Identity.__struct_fields__}
    there = Identity(**{name: path and folder / path for name, path in given.items()})
    assert words in (await refused("nats://127.0.0.1:1", there)).replace(f"{folder}/", "")


async def test_an_nkey_and_the_words_of_a_url_let_us_in(folder: Path) -> None:
    ours, stranger = nkey(USER), nkey(USER)
    for name, key in (("ours", ours), ("stranger", stranger)):
        (folder / f"{name}.seed").write_text(f"# an nkey\n{key.seed}\n")
    users = f'authorization {{ users: [{{nkey: {ours.public}}}, {{user: us, password: "hid@den"}}] }}'
    async with nats_server(folder / "nkeys", users) as server:
        assert await lets_in(server.url, Identity(credentials=folder / "ours.seed"))
        assert await lets_in(server.url.replace("//", "//us:hid%40den@"))
        told = await refused(server.url, Identity(credentials=folder / "stranger.seed"))
        assert "Authorization Violation: check user and password in CHATLEDGER_NATS_URL" in told
        await refused(server.url.replace("//", "//us:hidden@"))
    async with nats_server(folder / "token", "authorization { token: hidden }") as server:
        assert await lets_in(server.url.replace("//", "//hidden@"))


@pytest.fixture(scope="module")
async def operated(folder: Path) -> AsyncIterator[tuple[NatsServer, Nkey]]:
    """A server of an operator, and the account that signs its users."""
    operator, system, account = nkey(OPERATOR), nkey(ACCOUNT), nkey(ACCOUNT)
    limits = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True}
    limits |= {"conn": -1, "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    tokens = {
        system.public: operator.token(system, "SYS", type="account"),
        account.public: operator.token(account, "LEDGER", type="account", limits=limits),
    }
    preload = "\n".join(f"{name}: {token}" for name, token in tokens.items())
    more = (
        f"operator: {operator.token(operator, 'test', type='operator')}\nsystem_account: {system.public}\n"
        f"resolver: MEMORY\nresolver_preload: {{\n{preload}\n}}"
    )
    async with nats_server(folder / "operated", more) as server:
        yield server, account


def credentials(path: Path, account: Nkey, **claims: object) -> Path:
    """A file as `nsc generate creds` writes it."""
    user = nkey(USER)
    token = account.token(user, "chatledger", type="user", subs=-1, data=-1, payload=-1, **claims)
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
    )
    return path


async def test_credentials_let_us_in(folder: Path, operated: tuple[NatsServer, Nkey]) -> None:
    server, account = operated
    assert await lets_in(server.url, Identity(credentials=credentials(folder / "us.creds", account)))
    stranger = Identity(credentials=credentials(folder / "stranger.creds", nkey(ACCOUNT)))
    assert "Authorization Violation" in await refused(server.url, stranger)


async def test_credentials_that_expire_are_read_anew(
    folder: Path, operated: tuple[NatsServer, Nkey], caplog: pytest.LogCaptureFixture
) -> None:
    server, account = operated
    path = credentials(folder / "short.creds", account, expires=int(time.time()) + 2)
    connection = await jetstream.connect(server.url, name="test", identity=Identity(credentials=path))
    with caplog.at_level(logging.ERROR):
        await until(lambda: not connection.is_connected, 5)
        path.write_text("half of a file")
        await until(lambda: "holds no key of a user" in connection.why(), 5)
        credentials(path, account)
        await until(lambda: connection.is_connected, 5)
    assert "authentication expired" in caplog.text
    assert len(caplog.messages) == 2
    await jetstream.call(connection, "INFO")
    await connection.close()
