"""What stands at an address: whether anything listens there, and which peer proves that it is the one.

libp2p's TLS names a peer in its certificate: an extension holds its public key and a signature over the
certificate's own key (libp2p specs, tls/tls.md), which TLS proves the other side to have. So one handshake, without
p2pd, tells who listens at an address, also where p2pd has a connection with that peer and so would not dial again.
This file does not know members nor what may be asked of them. It runs on the event loop.
"""

import asyncio
import contextlib
import re
import ssl
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hivemind.utils.multiaddr import Multiaddr

from dht.errors import PeerUnreachable
from dht.identity import peer_id_to_str

PROBE_S = 2.0
"""Seconds after which an address counts as dead."""

_TCP = re.compile(r"^/(?:ip4|ip6|dns|dns4|dns6)/([^/]+)/tcp/(\d+)$")
_HANDSHAKE = b"".join(bytes([len(line)]) + line for line in (b"/multistream/1.0.0\n", b"/tls/1.0.0\n"))
"""What the side that dials says first, and what a p2pd answers: both lines of multistream-select."""
_PEER_EXTENSION = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
_SIGNED_KEY = re.compile(rb"\x30\x68\x04\x24(\x08\x01\x12\x20.{32})\x04\x40(.{64})", re.DOTALL)
"""SignedKey in DER: the protobuf of an Ed25519 public key, and its signature."""
_INLINED = b"\x00\x24"
"""What makes a peer id of the protobuf: an identity multihash of 36 bytes."""


def is_multiaddr(address: str) -> bool:
    """Say whether text from the network is a multiaddr."""
    try:
        Multiaddr(address).to_bytes()
    except (ValueError, LookupError, OSError):
        return False
    return bool(address)


def tcp_endpoint(address: str) -> tuple[str, int] | None:
    """Give host and port of a TCP multiaddr; None for other transports."""
    match = _TCP.match(address)
    return (match.group(1), int(match.group(2))) if match is not None else None


async def is_listening(address: str) -> bool:
    """Say whether something listens at a TCP multiaddr; False for other transports."""
    endpoint = tcp_endpoint(address)
    if endpoint is None:
        return False
    try:
        async with asyncio.timeout(PROBE_S):
            _, writer = await asyncio.open_connection(*endpoint)
    except (OSError, TimeoutError, ValueError, OverflowError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


async def first_listening(addresses: Sequence[str], timeout_s: float = PROBE_S) -> str | None:
    """Give the address at which something is heard first; None when nothing is in time."""

    async def heard(address: str) -> str | None:
        return address if await is_listening(address) else None

    probes = [asyncio.get_running_loop().create_task(heard(address)) for address in addresses]
    try:
        async with asyncio.timeout(timeout_s):
            for probe in asyncio.as_completed(probes):
                if (address := await probe) is not None:
                    return address
    except TimeoutError:
        pass
    finally:
        for task in probes:
            task.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
    return None


async def peer_at(address: str) -> str | None:
    """Say which peer listens at a TCP multiaddr, as it proves itself.

    Returns:
        Its peer id; None when no peer with an Ed25519 key listens there.

    Raises:
        PeerUnreachable: Something listens and does not say in time what it is.
    """
    endpoint = tcp_endpoint(address)
    if endpoint is None or not await is_listening(address):
        return None
    try:
        async with asyncio.timeout(PROBE_S):
            return _proven_peer(await _certificate_at(*endpoint))
    except TimeoutError:
        raise PeerUnreachable(f"what listens at {address} does not say who it is") from None
    except (OSError, EOFError, ValueError):
        return None


async def _certificate_at(host: str, port: int) -> bytes:
    """Shake hands with what listens there as a libp2p peer would; give its certificate, DER."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(_HANDSHAKE)
        if await reader.readexactly(len(_HANDSHAKE)) != _HANDSHAKE:
            raise ValueError("no libp2p peer with TLS")
        await writer.start_tls(_anyone())
        certificate: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return certificate or b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _anyone() -> ssl.SSLContext:
    """Accept any certificate: a peer's is signed by nobody but itself, and read afterwards."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["libp2p"])
    return context


def _proven_peer(certificate: bytes) -> str | None:
    """Read the peer id that a certificate's owner has signed for; None where it is none or not signed."""
    parsed = x509.load_der_x509_certificate(certificate)
    with contextlib.suppress(x509.ExtensionNotFound, InvalidSignature, UnsupportedAlgorithm, ValueError):
        extension = parsed.extensions.get_extension_for_oid(_PEER_EXTENSION).value
        assert isinstance(extension, x509.UnrecognizedExtension)
        if (signed := _SIGNED_KEY.fullmatch(extension.value)) is not None:
            public, signature = signed.groups()
            own_key = parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            Ed25519PublicKey.from_public_bytes(public[4:]).verify(signature, b"libp2p-tls-handshake:" + own_key)
            return peer_id_to_str(_INLINED + public)
    return None
