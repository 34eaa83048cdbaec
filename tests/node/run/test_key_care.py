"""What is said of a key."""

import pytest

from dht.identity import Identity
from node.run.identity import EXPORTED
from node.run.key_care import in_sentences, look_at_key, look_at_keys


def test_a_key_that_only_its_owner_reads_and_that_has_a_backup_is_safe(tmp_path):
    identity = Identity.load_or_create(tmp_path / "identity")
    (tmp_path / EXPORTED).write_text(f"2026-11-21 {identity.peer_id}\n")
    care = look_at_key(tmp_path)
    assert (care.is_safe, care.peer_id, care.mode, care.exported) == (True, identity.peer_id, 0o600, "2026-11-21")
    said = in_sentences(care)
    assert said[0] == f"Your key is safe. It is in {tmp_path / 'identity'}; you are {identity.peer_id}."
    assert said[1:] == ["A backup was exported on 2026-11-21."]


def test_a_key_without_a_backup_is_not_safe(tmp_path):
    Identity.load_or_create(tmp_path / "identity")
    care = look_at_key(tmp_path)
    assert (care.is_safe, care.is_private, care.exported) == (False, True, None)
    assert "efedllm identity export" in in_sentences(care)[-1]


@pytest.mark.parametrize(
    ("mode", "mend"), [(0o640, "chmod 600"), (0o604, "chmod 600"), (0o620, "chmod go-w"), (0o666, "chmod 600")]
)
def test_a_key_that_others_get_at_is_not_safe(tmp_path, mode, mend):
    identity = Identity.load_or_create(tmp_path / "identity")
    (tmp_path / "identity").chmod(mode)
    (tmp_path / EXPORTED).write_text(f"2026-11-21 {identity.peer_id}")
    care = look_at_key(tmp_path)
    assert not care.is_safe
    assert in_sentences(care)[0].startswith("Your key is NOT safe.")
    assert f"{mend} {tmp_path / 'identity'}" in in_sentences(care)[1]


def test_a_key_in_a_directory_that_others_may_change_is_not_safe(tmp_path):
    identity = Identity.load_or_create(tmp_path / "identity")
    (tmp_path / EXPORTED).write_text(f"2026-11-21 {identity.peer_id}")
    tmp_path.chmod(0o777)
    assert not look_at_key(tmp_path).is_safe
    assert "can replace your key" in in_sentences(look_at_key(tmp_path))[1]


@pytest.mark.parametrize(
    "text", [b"", b"\xff\xfe", b"2026-11-21\x1b[2J", b"soon", b"2026-11-21", b"2026-11-21 12D3KooWx"]
)
def test_a_marker_that_does_not_name_this_key_says_nothing_of_it(tmp_path, text):
    Identity.load_or_create(tmp_path / "identity")
    (tmp_path / EXPORTED).write_bytes(text)
    care = look_at_key(tmp_path)
    assert (care.is_safe, care.exported) == (False, None)


def test_no_key_is_made_by_looking(tmp_path):
    care = look_at_key(tmp_path)
    assert (care.is_safe, care.peer_id) == (False, None)
    assert in_sentences(care)[0].startswith("You have no key yet")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_key_is_said(tmp_path):
    (tmp_path / "identity").write_bytes(b"junk")
    care = look_at_key(tmp_path)
    assert (care.is_safe, care.peer_id) == (False, None)
    assert "holds no Ed25519 key" in in_sentences(care)[0]


def test_the_key_of_clients_is_told_of_where_there_is_no_servers(tmp_path):
    identity = Identity.load_or_create(tmp_path / "client-identity")
    care = look_at_key(tmp_path)
    assert (care.peer_id, care.is_safe) == (identity.peer_id, True)
    assert "newcomer" in in_sentences(care)[-1]
    server = Identity.load_or_create(tmp_path / "identity")
    assert [care.peer_id for care in look_at_keys(tmp_path)] == [server.peer_id, identity.peer_id]
    assert look_at_key(tmp_path).peer_id == server.peer_id
