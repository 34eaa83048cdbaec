"""What is said of a key."""

import pytest

from dht.identity import Identity
from node.run.key_care import EXPORTED, in_sentences, look_at_key


def test_a_key_that_only_its_owner_reads_and_that_has_a_backup_is_safe(tmp_path):
    identity = Identity.load_or_create(tmp_path / "identity")
    (tmp_path / EXPORTED).write_text("2026-11-21\n")
    care = look_at_key(tmp_path)
    assert (care.is_safe, care.peer_id, care.mode, care.exported) == (True, identity.peer_id, 0o600, "2026-11-21")
    said = in_sentences(care)
    assert identity.peer_id in said[0]
    assert said[1:] == ["A backup was exported on 2026-11-21."]


def test_a_key_without_a_backup_is_not_safe(tmp_path):
    Identity.load_or_create(tmp_path / "identity")
    care = look_at_key(tmp_path)
    assert (care.is_safe, care.is_private, care.exported) == (False, True, None)
    assert "efedllm identity export" in in_sentences(care)[-1]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_get_at_is_not_safe(tmp_path, mode):
    Identity.load_or_create(tmp_path / "identity")
    (tmp_path / "identity").chmod(mode)
    (tmp_path / EXPORTED).write_text("2026-11-21")
    care = look_at_key(tmp_path)
    assert not care.is_safe
    assert f"chmod 600 {tmp_path / 'identity'}" in in_sentences(care)[1]


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"2026-11-21\x1b[2J", b"soon"])
def test_a_marker_that_says_no_date_still_says_that_there_was_a_backup(tmp_path, text):
    Identity.load_or_create(tmp_path / "identity")
    (tmp_path / EXPORTED).write_bytes(text)
    care = look_at_key(tmp_path)
    assert (care.is_safe, care.exported) == (True, "")
    assert in_sentences(care)[-1] == "A backup was exported."


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
    assert look_at_key(tmp_path).peer_id == server.peer_id
