"""A file is there whole or not at all, and takes no other's place."""

import errno

import pytest

from node.run.new_file import write_new


@pytest.fixture(params=[True, False], ids=["links", "no links"])
def disk(request, monkeypatch):
    """A disk on which a file may have two names, or none such."""

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not request.param:
        monkeypatch.setattr("os.link", no_links)


@pytest.mark.usefixtures("disk")
def test_a_new_file_is_its_owners_alone_and_takes_no_others_place(tmp_path):
    write_new(tmp_path / "file", "text")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(FileExistsError):
            write_new(tmp_path / name, "another")
    assert (tmp_path / "file").read_text() == "text"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_one_that_is_cut_off_leaves_nothing(tmp_path, monkeypatch, ends: BaseException):
    def cut_off(_: int) -> None:
        assert not (tmp_path / "file").exists()
        raise ends

    monkeypatch.setattr("os.fsync", cut_off)
    with pytest.raises(type(ends)) as caught:
        write_new(tmp_path / "file", "text")
    assert getattr(caught.value, "filename", str(tmp_path / "file")) == str(tmp_path / "file")
    assert not list(tmp_path.iterdir())
