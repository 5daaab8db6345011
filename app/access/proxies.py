"""The client behind a reverse proxy, as a proxy that the operator trusts reports it; nobody else is believed.

Every proxy appends to `X-Forwarded-For` the address that it was called from, so the list is read from its
end: the last address that is no trusted proxy is the client's. What stands before it is the client's word.
"""

import ipaddress
import logging
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
# A provider gives a customer a whole /64 of IPv6: its addresses are one source.
SOURCE_PREFIX = 64
log = logging.getLogger("chatledger.web")


class Proxies:
    """The addresses and networks whose `X-Forwarded-For` and `X-Forwarded-Proto` count."""

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self._networks = [ipaddress.ip_network(one, strict=False) for one in trusted]
        self._warned = False

    def client(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The client's address, where `peer` made the connection and sent these headers."""
        hops = _hops(headers)
        if hops and not self._trusts(address := _address(peer)):
            self._warn(peer)
            return str(address or peer)
        found = _address(peer)
        for hop in reversed(hops):
            if not self._trusts(found) or (before := _address(hop)) is None:
                break
            found = before
        return str(found or peer)

    def is_https(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether the client's connection to the proxy is encrypted, as a trusted proxy reports."""
        found = [value for name, value in headers if name == b"x-forwarded-proto"]
        return bool(found) and found[-1].lower().strip() == b"https" and self._trusts(_address(peer))

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)

    def _warn(self, peer: str) -> None:
        """Once, because an operator who forgot the setting sees only one client."""
        if not self._warned:
            self._warned = True
            log.warning(
                "%s sends X-Forwarded-For and is not trusted: if it is your proxy, set"
                " CHATLEDGER_TRUSTED_PROXIES to its address",
                peer,
            )


def source_of(address: str) -> str:
    """Whoever has an address: the address itself, or its /64 in IPv6."""
    plain = _address(address)
    if isinstance(plain, IPv6Address):
        return str(ipaddress.ip_network((plain, SOURCE_PREFIX), strict=False))
    return address


def client_of(proxies: Proxies, scope: Mapping[str, object]) -> str:
    """The client of an ASGI scope."""
    client, headers = scope.get("client"), scope.get("headers")
    assert isinstance(headers, Sequence)
    return proxies.client(str(client[0]) if isinstance(client, Sequence) else "", headers)


def _hops(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    values = [value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"]
    return [hop.strip() for value in values for hop in value.split(",")]


def _address(text: str) -> Address | None:
    """The address in a hop, which may have a port; None if it is none, as in `unknown`."""
    host, _, port = text.rpartition(":")
    if port.isascii() and port.isdecimal() and (host.startswith("[") or "." in host):
        text = host
    try:
        found = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found
