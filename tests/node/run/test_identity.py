"""``efedllm identity``: shown, exported, imported; nothing is lost on the way."""

import errno
import fcntl
import json
import os
import pty
import stat
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dht.beginnings import Beginning, write_beginning
from dht.identity import Identity
from node.cli import main
from node.run import identity as command
from node.run.key_care import look_at_key

PHRASE = "correct horse battery"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFEDLLM_HOME", str(tmp_path / "home"))
    (tmp_path / "phrase").write_text(PHRASE + "\n")
    return tmp_path / "home"


def run(*arguments: str) -> int:
    return main(["identity", *arguments])


def exported(home: Path) -> Path:
    """Write an export of another node's identity."""
    other = home.parent / "other"
    Identity.load_or_create(other / "identity")
    command.export(other, home.parent / "sealed", home.parent / "phrase")
    return home.parent / "sealed"


def import_(home: Path, *more: str) -> int:
    return run("import", str(home.parent / "sealed"), "--passphrase-file", str(home.parent / "phrase"), *more)


def test_show_makes_an_identity_and_says_that_its_key_is_safe(home: Path, capsys: pytest.CaptureFixture[str]):
    assert run("show") == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == Identity.load(home / "identity").peer_id
    assert f"kept in {home / 'identity'} since 20" in shown.err
    assert "only you and its administrator can read your key" in shown.err
    assert run("show", "--json") == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["safe"] is True
    assert (fields["advice"], fields["readable_by_others"]) == ("", False)
    assert fields["created"].endswith("+00:00")


def test_show_says_since_when_the_identity_counts_in_which_swarm(home: Path, capsys: pytest.CaptureFixture[str]):
    run("show")
    peer_id = capsys.readouterr().out.strip()
    write_beginning(home / "ident.json", peer_id, "ab" * 32, Beginning(80_000, 7, 21600))
    write_beginning(home / "ident.json", peer_id, "", Beginning(80_001, 7, 21600))
    run("show")
    shown = capsys.readouterr().err
    assert "enrolled in swarm abababab since 2024-10-04 00:00 UTC" in shown
    assert "enrolled in swarm (without rules) since 2024-10-04 06:00 UTC" in shown
    run("show", "--json")
    assert json.loads(capsys.readouterr().out)["enrolled"]["ab" * 32]["created_epoch"] == 80_000


def test_show_says_when_others_can_read_the_key_and_how_to_mend_it(home: Path, capsys: pytest.CaptureFixture[str]):
    run("show")
    (home / "identity").chmod(0o644)
    capsys.readouterr()
    assert run("show") == 0
    assert f"chmod 600 {home / 'identity'}" in capsys.readouterr().err
    run("show", "--json")
    fields = json.loads(capsys.readouterr().out)
    assert (fields["safe"], fields["readable_by_others"]) == (False, True)


@pytest.mark.parametrize(
    ("file_mode", "directory_mode", "owner", "advice"),
    [
        (0o600, 0o755, 7, ""),
        (0o400, 0o700, 7, ""),
        (0o600, 0o1777, 7, ""),
        (0o640, 0o755, 7, "chmod 600"),
        (0o604, 0o755, 7, "chmod 600"),
        (0o620, 0o755, 7, "chmod go-w"),
        (0o600, 0o775, 7, "chmod go-w"),
        (0o600, 0o757, 7, "chmod go-w"),
        (0o600, 0o755, 8, "directory of your own"),
    ],
)
def test_a_key_is_safe_when_only_its_owner_can_read_or_replace_it(file_mode, directory_mode, owner, advice: str):
    file, directory = SimpleNamespace(st_mode=file_mode, st_uid=owner), SimpleNamespace(st_mode=directory_mode)
    safety = command.safety_of(file, directory, 7)
    assert safety.is_safe is (advice == "")
    assert advice in safety.advice(Path("identity"))


def test_an_identity_moves_to_another_home_sealed(home: Path, capsys: pytest.CaptureFixture[str]):
    sealed = exported(home)
    assert stat.S_IMODE(sealed.stat().st_mode) == 0o600
    assert import_(home) == 0
    assert (home / "identity").read_bytes() == (home.parent / "other" / "identity").read_bytes()
    assert stat.S_IMODE((home / "identity").stat().st_mode) == 0o600
    assert "ledger.sqlite" in capsys.readouterr().err
    assert import_(home) == 0
    assert "already" in capsys.readouterr().err


def test_an_identity_that_stands_is_not_replaced_unless_that_is_asked_for_and_then_kept(home: Path, capsys):
    exported(home)
    own = Identity.load_or_create(home / "identity")
    before = (home / "identity").read_bytes()
    assert import_(home) == 23
    assert "--replace" in capsys.readouterr().err
    assert (home / "identity").read_bytes() == before
    assert import_(home, "--replace") == 0
    assert Identity.load(home / "identity").peer_id == Identity.load(home.parent / "other" / "identity").peer_id
    (kept,) = home.glob("identity.*.*")
    assert kept.read_bytes() == before
    assert own.peer_id[-8:] in kept.name
    assert str(kept) in capsys.readouterr().err


def test_a_damaged_identity_is_put_aside_too(home: Path):
    exported(home)
    home.mkdir()
    (home / "identity").write_bytes(b"half a key")
    assert import_(home) == 23
    assert import_(home, "--replace") == 0
    (kept,) = home.glob("identity.*.*")
    assert kept.read_bytes() == b"half a key"


def test_the_identity_of_a_running_node_is_not_replaced(home: Path):
    exported(home)
    own = Identity.load_or_create(home / "identity")
    with own.lock():
        assert import_(home, "--replace") == 13
    assert Identity.load(home / "identity").peer_id == own.peer_id
    assert [path.name for path in home.iterdir()] == ["identity"]


def test_a_wrong_passphrase_is_one_sentence_and_a_code_of_its_own(home: Path, capsys: pytest.CaptureFixture[str]):
    exported(home)
    (home.parent / "phrase").write_text("wrong horse battery")
    assert import_(home) == 29
    assert capsys.readouterr().err.splitlines()[-1] == (
        "efedllm: the passphrase does not open this identity: try again with the right one"
    )
    assert not home.exists()


def test_a_damaged_export_is_told_without_asking_for_the_passphrase(home: Path):
    sealed = exported(home)
    sealed.write_text(sealed.read_text()[:-30])
    (home.parent / "phrase").unlink()
    assert import_(home) == 15


def export(home: Path, target: str = "out") -> int:
    return run("export", str(home.parent / target), "--passphrase-file", str(home.parent / "phrase"))


def test_what_cannot_be_exported_is_named(home: Path, capsys: pytest.CaptureFixture[str]):
    assert export(home) == 23
    assert "no identity" in capsys.readouterr().err
    run("show")
    (home.parent / "there").write_text("mine")
    assert export(home, "there") == 23
    assert (home.parent / "there").read_text() == "mine"
    assert export(home, "nowhere/out") == 23
    (home.parent / "phrase").write_text("short")
    assert export(home) == 23
    assert "at least 8" in capsys.readouterr().err
    (home.parent / "phrase").write_bytes(b"\xff" * 20)
    assert export(home) == 23
    (home.parent / "phrase").unlink()
    assert export(home) == 23
    assert not (home.parent / "out").exists()


def test_without_a_terminal_the_passphrase_must_stand_in_a_file(home: Path, capsys, monkeypatch):
    run("show")
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: PTH123, SIM115 - closed with the test
    assert run("export", str(home.parent / "out")) == 23
    assert "--passphrase-file" in capsys.readouterr().err


class Terminal:
    """Somebody who types these passphrases."""

    def __init__(self, *typed: str) -> None:
        self.typed = list(typed)

    def isatty(self) -> bool:
        return True

    def getpass(self, prompt: str) -> str:
        if not self.typed:
            raise EOFError
        return self.typed.pop(0)


@pytest.mark.parametrize(
    ("typed", "code"), [([PHRASE, PHRASE], 0), ([PHRASE, "another phrase"], 23), ([PHRASE], 23), (["\udcff" * 9], 23)]
)
def test_at_a_terminal_the_passphrase_is_asked_for_twice(home: Path, monkeypatch, typed: list[str], code: int):
    run("show")
    terminal = Terminal(*typed)
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("getpass.getpass", terminal.getpass)
    assert run("export", str(home.parent / "out")) == code
    assert (home.parent / "out").exists() == (code == 0)


def test_an_export_is_remembered_as_a_backup(home: Path):
    assert not look_at_key(home).is_safe
    run("show")
    assert export(home) == 0
    care = look_at_key(home)
    assert care.is_safe
    assert care.exported is not None
    assert care.exported.startswith("20")


@pytest.mark.parametrize(
    ("phrase", "told"),
    [
        (b"", "at least 8"),
        (b"\n", "at least 8"),
        (b"a" * 1025, "more than 1024 bytes"),
        (b"a" * 100_000, "more than 1024 bytes"),
        ("\u00e9".encode() * 700, "more than 1024 bytes"),
        (b"first line\nsecond line\n", "more than one line"),
        (b"first line\rsecond line", "more than one line"),
    ],
)
def test_a_passphrase_that_could_not_be_typed_again_seals_nothing(home: Path, capsys, phrase: bytes, told: str):
    run("show")
    (home.parent / "phrase").write_bytes(phrase)
    assert export(home) == 23
    assert told in capsys.readouterr().err
    assert not (home.parent / "out").exists()


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_passphrase_may_have_a_line_end_and_be_long(home: Path, end: bytes):
    run("show")
    (home.parent / "phrase").write_bytes(b"a" * 1024 + end)
    assert export(home) == 0
    (home.parent / "phrase").write_bytes(b"a" * 1024)
    assert run("import", str(home.parent / "out"), "--passphrase-file", str(home.parent / "phrase")) == 0


def test_a_name_that_cannot_be_is_told(home: Path, capsys: pytest.CaptureFixture[str]):
    run("show")
    assert export(home, "x" * 300) == 23
    assert "File name too long" in capsys.readouterr().err
    (home.parent / "link").symlink_to(home.parent / "nowhere")
    assert export(home, "link") == 23
    assert "is there already" in capsys.readouterr().err
    assert not (home.parent / "nowhere").exists()


def test_without_any_input_the_passphrase_must_stand_in_a_file(home: Path, capsys, monkeypatch):
    run("show")
    monkeypatch.setattr("sys.stdin", None)
    assert run("export", str(home.parent / "out")) == 23
    assert "--passphrase-file" in capsys.readouterr().err


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_an_export_that_is_cut_off_leaves_nothing(home: Path, monkeypatch, ends: BaseException):
    run("show")

    def cut_off(_: int) -> None:
        assert not (home.parent / "out").exists()
        raise ends

    before = sorted(home.parent.iterdir())
    monkeypatch.setattr("os.fsync", cut_off)
    assert export(home) == (130 if isinstance(ends, KeyboardInterrupt) else 23)
    assert sorted(home.parent.iterdir()) == before


def test_a_full_disk_is_named(home: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    run("show")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert export(home) == 26
    assert f"The disk is full ({home.parent / 'out'})" in capsys.readouterr().err
    assert not (home.parent / "out").exists()


def test_an_interrupt_while_the_passphrase_is_typed_gives_the_terminal_back(home: Path):
    """A pseudo terminal: it shows nothing while the passphrase is typed, and shows again what is typed after Ctrl-C."""
    run("show")
    controller, terminal = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "node", "identity", "export", str(home.parent / "out")],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    try:
        said = b""
        while b"Passphrase" not in said:
            said += os.read(controller, 1024)
        while termios.tcgetattr(terminal)[3] & termios.ECHO:
            time.sleep(0.01)
        os.write(controller, b"\x03")
        assert child.wait(60) == 130
        assert termios.tcgetattr(terminal)[3] & termios.ECHO
    finally:
        child.kill()
        child.wait()
        os.close(controller)
        os.close(terminal)


def test_an_identity_that_is_made_while_one_is_imported_is_not_taken_for_it(home: Path, monkeypatch, capsys):
    exported(home)
    write_new = Identity.write_new

    def too_late(identity: Identity) -> None:
        monkeypatch.setattr(Identity, "write_new", write_new)
        Identity.load_or_create(home / "identity")
        write_new(identity)

    monkeypatch.setattr(Identity, "write_new", too_late)
    assert import_(home) == 23
    assert "--replace" in capsys.readouterr().err


def test_too_little_memory_is_told(home: Path, monkeypatch, capsys):
    exported(home)

    def starve(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(command, "open_identity", starve)
    assert import_(home) == 23
    assert "memory" in capsys.readouterr().err
