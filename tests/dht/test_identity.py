import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import base58
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from dht.errors import IdentityDamaged, IdentityInUse, IdentityNotWritten
from dht.identity import Identity, forget_signatures, peer_id_to_bytes, peer_id_to_str, signed_bytes, verify


def test_an_identity_is_made_once_and_then_loaded(tmp_path: Path):
    first = Identity.load_or_create(tmp_path / "deep" / "identity")
    again = Identity.load_or_create(tmp_path / "deep" / "identity")
    assert first.peer_id == again.peer_id
    assert first.peer_id.startswith("12D3KooW")
    assert stat.S_IMODE((tmp_path / "deep" / "identity").stat().st_mode) == 0o600
    assert [each.name for each in (tmp_path / "deep").iterdir()] == ["identity"]


def test_the_file_is_libp2ps_private_key_message(tmp_path: Path):
    identity = Identity.load_or_create(tmp_path / "identity")
    data = (tmp_path / "identity").read_bytes()
    assert data[:4] == bytes([0x08, 1, 0x12, 64])  # key type Ed25519, 64 bytes of data
    key = Ed25519PrivateKey.from_private_bytes(data[4:36])
    assert key.public_key().public_bytes_raw() == data[36:] == identity.peer_id_bytes[6:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"\0" + data[1:],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:4] + bytes([data[4] ^ 1]) + data[5:],
    ],
)
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, damage):
    path = tmp_path / "identity"
    Identity.load_or_create(path)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(IdentityDamaged, match=str(path)):
        Identity.load_or_create(path)
    assert path.read_bytes() == damaged


def test_a_directory_in_the_files_place_is_named(tmp_path: Path):
    with pytest.raises(IdentityDamaged, match=str(tmp_path)):
        Identity.load_or_create(tmp_path)


@pytest.mark.parametrize("failing", ["write", "fsync", "link"])
def test_a_full_disk_leaves_no_file_and_says_how_to_mend_it(tmp_path: Path, monkeypatch, failing: str):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "write":
        real_fdopen = os.fdopen

        def fdopen(descriptor: int, mode: str):
            file = real_fdopen(descriptor, mode)
            file.close()
            return Path("/dev/full").open("wb", buffering=0)

        monkeypatch.setattr(os, "fdopen", fdopen)
    else:
        monkeypatch.setattr(os, failing, full)
    with pytest.raises(IdentityNotWritten, match="free some space"):
        Identity.load_or_create(tmp_path / "identity")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written_is_named(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(IdentityNotWritten, match="writable"):
        Identity.load_or_create(tmp_path / "identity")


def test_when_two_create_at_once_both_have_the_winners_key(tmp_path: Path, monkeypatch):
    path = tmp_path / "identity"
    real_link, winner = os.link, Identity.ephemeral()

    def lose_the_race(source: str, target: Path) -> None:
        Path(target).write_bytes(winner._file_bytes())
        real_link(source, target)

    monkeypatch.setattr(os, "link", lose_the_race)
    assert Identity.load_or_create(path).peer_id == winner.peer_id


def test_one_file_is_held_by_one_process(tmp_path: Path):
    path = tmp_path / "identity"
    identity = Identity.load_or_create(path)
    code = (
        "import sys; from pathlib import Path; from dht.identity import Identity\n"
        "with Identity.load_or_create(Path(sys.argv[1])).lock(): print('held')"
    )

    def other_process() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(path)]
        return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)

    with identity.lock():
        assert "IdentityInUse" in other_process().stderr
        with pytest.raises(IdentityInUse, match=str(path)), identity.lock():
            pass
    assert other_process().stdout == "held\n"


def test_an_ephemeral_identity_has_a_file_only_while_it_is_needed():
    identity = Identity.ephemeral()
    with identity.lock(), identity.key_file() as path:
        assert Identity.load_or_create(path).peer_id == identity.peer_id
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.parent.exists()


def test_a_signature_counts_for_its_owner_type_and_body_alone():
    alice, bob = Identity.ephemeral(), Identity.ephemeral()
    signature = alice.sign(16, b"body")
    assert verify(alice.peer_id_bytes, 16, b"body", signature)
    assert not verify(bob.peer_id_bytes, 16, b"body", signature)
    assert not verify(alice.peer_id_bytes, 17, b"body", signature)
    assert not verify(alice.peer_id_bytes, 16, b"body2", signature)
    assert not verify(alice.peer_id_bytes, 16, b"body", signature[:-1])


def test_a_signature_that_was_found_good_is_remembered_and_no_other(monkeypatch):
    identity, other = Identity.ephemeral(), Identity.ephemeral()
    signatures = [identity.sign(16, b"%d" % number) for number in range(3)]
    forget_signatures()
    assert verify(identity.peer_id_bytes, 16, b"0", signatures[0])
    assert not verify(identity.peer_id_bytes, 16, b"1", signatures[0])
    monkeypatch.setattr("dht.identity._public_key", None)  # Whatever is not remembered raises now.
    assert verify(identity.peer_id_bytes, 16, b"0", signatures[0])
    for changed in (
        (identity.peer_id_bytes, 16, b"1", signatures[0]),
        (identity.peer_id_bytes, 17, b"0", signatures[0]),
        (identity.peer_id_bytes, 16, b"0", signatures[1]),
        (other.peer_id_bytes, 16, b"0", signatures[0]),
    ):
        with pytest.raises(TypeError):
            verify(*changed)


def test_so_many_signatures_are_remembered_and_not_more(monkeypatch):
    monkeypatch.setattr("dht.identity._REMEMBERED_SIGNATURES", 2)
    forget_signatures()
    identity = Identity.ephemeral()
    signatures = [identity.sign(16, b"%d" % number) for number in range(3)]
    monkeypatch.setattr("dht.identity._public_key", None)
    assert verify(identity.peer_id_bytes, 16, b"1", signatures[1])
    with pytest.raises(TypeError):
        verify(identity.peer_id_bytes, 16, b"0", signatures[0])


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_junk_is_not_signed_and_does_not_raise(peer_id, signature):
    assert not verify(peer_id, 1, b"body", signature)
    assert not verify(
        bytes.fromhex("002408011220") + peer_id[:32].ljust(32, b"\0"), 1, b"body", signature.ljust(64)[:64]
    )


@pytest.mark.parametrize(
    ("public", "signature"),
    [
        # A neutral element as key and R, S = 0: "valid" for every body in libraries that skip the small-order check.
        ("01" + "00" * 31, "01" + "00" * 31 + "00" * 32),
        # S = L, the group order: malleable in libraries that do not reduce it.
        (None, "01" + "00" * 31 + "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010"),
    ],
)
def test_edge_cases_of_ed25519_are_decided_by_one_library(public, signature):
    owner = bytes.fromhex("002408011220" + public) if public else Identity.ephemeral().peer_id_bytes
    expected = public is not None  # what the cryptography package says today; a change must be noticed
    assert verify(owner, 1, b"any body", bytes.fromhex(signature)) is expected


def test_the_domain_stands_before_what_is_signed():
    assert signed_bytes(16, b"body") == b"\x0cefed/trust/1" + b"\x01\x10" + b"\x04body"
    assert signed_bytes(1, bytes(300))[15:17] == bytes([0xAC, 0x02])


def test_peer_ids_are_read_strictly_both_ways():
    identity = Identity.ephemeral()
    assert peer_id_to_bytes(identity.peer_id) == identity.peer_id_bytes
    assert peer_id_to_str(identity.peer_id_bytes) == identity.peer_id
    rsa = base58.b58encode(bytes.fromhex("1220") + bytes(32)).decode()
    for bad in (
        rsa,
        "",
        identity.peer_id[:-1],
        identity.peer_id + "1",
        "1" + identity.peer_id,
        "0OIl",
        "ä",
        "1" * 1000,
    ):
        with pytest.raises(ValueError):
            peer_id_to_bytes(bad)
    for worse in (b"", identity.peer_id_bytes[:-1], identity.peer_id_bytes + b"\0", bytes(38)):
        with pytest.raises(ValueError):
            peer_id_to_str(worse)
