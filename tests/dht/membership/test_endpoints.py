"""What is found out about an address: whether anything listens there, and which peer proves that it is the one."""

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from dht.errors import PeerUnreachable
from dht.identity import Identity, peer_id_to_bytes
from dht.membership import endpoints
from dht.membership.endpoints import first_listening, is_listening, peer_at
from dht.swarm import Swarm

CIRCUIT = f"/ip4/192.0.2.1/tcp/1/p2p/{Identity.ephemeral().peer_id}/p2p-circuit"
HELLO = b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n"


@contextlib.asynccontextmanager
async def listening(serve) -> AsyncIterator[str]:
    """Serve connections on a free port; yield its multiaddr."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"/ip4/127.0.0.1/tcp/{server.sockets[0].getsockname()[1]}"
    server.close()


def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def test_the_address_that_answers_is_found_among_dead_ones():
    async with listening(close) as open_address:
        assert await first_listening(["/ip4/127.0.0.1/tcp/9", "/ip4/127.0.0.1/udp/1", open_address]) == open_address
    assert await first_listening(["/ip4/127.0.0.1/tcp/9"]) is None
    assert await first_listening([]) is None
    assert not await is_listening(CIRCUIT)


async def name_a_peer() -> None:
    async with Swarm(Identity.ephemeral()) as swarm:
        (address,) = [address.partition("/p2p/")[0] for address in swarm.addresses]
        assert await peer_at(address) == swarm.peer_id
    assert await peer_at(address) is None
    assert await peer_at(CIRCUIT) is None


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_peer_is_named_by_what_its_certificate_proves(loop):
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(name_a_peer())


async def test_what_does_not_speak_as_a_peer_is_none():
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(HELLO))
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def babble_after_the_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(HELLO))
        writer.write(HELLO + bytes(100))
        writer.close()

    for serve in (close, babble, babble_after_the_hello):
        async with listening(serve) as address:
            assert await peer_at(address) is None


async def test_what_says_nothing_is_not_taken_for_nobody(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(endpoints, "PROBE_S", 0.2)
    silent = asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()

    async with listening(say_nothing) as address:
        with pytest.raises(PeerUnreachable, match="does not say who it is"):
            await peer_at(address)
        silent.set()
        await asyncio.sleep(0)


def forged(directory: Path, extension: bytes | None) -> ssl.SSLContext:
    """Make a TLS server whose certificate holds what it likes."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, "1")])
    now = datetime.datetime.now(datetime.UTC)
    draft = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    if extension is not None:
        identifier = x509.ObjectIdentifier("1.3.6.1.4.1.53594.1.1")
        draft = draft.add_extension(x509.UnrecognizedExtension(identifier, extension), critical=False)
    chain = directory / "chain.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain.write_bytes(secret + draft.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    context.set_alpn_protocols(["libp2p"])
    return context


VICTIM = Identity.from_seed(bytes(range(32)))
CLAIMED = b"\x30\x68\x04\x24" + peer_id_to_bytes(VICTIM.peer_id)[2:] + b"\x04\x40"


@pytest.mark.parametrize(
    "extension", [None, b"", b"\x30\x00", CLAIMED, CLAIMED + bytes(64), CLAIMED + VICTIM.sign(1, b"")]
)
async def test_nobody_passes_for_a_peer_that_has_not_signed_its_certificate(tmp_path: Path, extension: bytes | None):
    context = forged(tmp_path, extension)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(HELLO)) == HELLO
        writer.write(HELLO)
        await writer.start_tls(context)
        await reader.read()
        writer.close()

    async with listening(serve) as address:
        assert await peer_at(address) is None
