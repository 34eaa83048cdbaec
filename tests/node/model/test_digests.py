import hashlib
import json
import os

import pytest

from node.model.digests import DigestCache


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"first")
    return path


def hashed_bytes(cache, file):
    counts = []
    digest = cache.digest(file, counts.append)
    return digest, sum(counts)


def test_a_file_is_hashed_once_while_it_stays_the_same(file, tmp_path):
    expected = hashlib.sha256(b"first").digest()
    assert hashed_bytes(DigestCache(tmp_path / "home" / "digests.json"), file) == (expected, 5)
    assert hashed_bytes(DigestCache(tmp_path / "home" / "digests.json"), file) == (expected, 0)


def test_a_file_with_other_content_of_the_same_length_is_hashed_again(file, tmp_path):
    cache = DigestCache(tmp_path / "digests.json")
    cache.digest(file)
    file.write_bytes(b"other")
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert hashed_bytes(cache, file) == (hashlib.sha256(b"other").digest(), 5)


def test_a_file_put_in_the_place_of_another_is_hashed_again(file, tmp_path):
    cache = DigestCache(tmp_path / "digests.json")
    cache.digest(file)
    before = file.stat()
    other = tmp_path / "other"
    other.write_bytes(b"other")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert cache.digest(file) == hashlib.sha256(b"other").digest()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "7", '{"%s": 3}', '{"%s": ["5", "1", "1"]}', '{"%s": ["5", "1", "1", "zz"]}']
)
def test_a_damaged_memory_is_only_slow(content, file, tmp_path):
    path = tmp_path / "digests.json"
    path.write_text(content.replace("%s", str(file)))
    assert DigestCache(path).digest(file) == hashlib.sha256(b"first").digest()
    assert json.loads(path.read_text())[str(file)][-1] == hashlib.sha256(b"first").hexdigest()


def test_without_a_place_nothing_is_remembered(file):
    cache = DigestCache(None)
    assert hashed_bytes(cache, file)[1] == 5
    assert hashed_bytes(cache, file)[1] == 5
