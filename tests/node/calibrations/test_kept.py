"""What was fetched is there at the next start, if the disk still has that, for whoever trusts the same anchors."""

import os
from dataclasses import replace

import pytest

from dht.identity import Identity
from node.calibrations import kept as kept_module
from node.calibrations.kept import KeptCalibrations
from node.check.calibration import encode_calibration
from tests.node.check.figures import calibration

MADE = calibration()
DATA = encode_calibration(MADE)
ANCHORS = tuple(Identity.ephemeral().peer_id for _ in range(2))


@pytest.fixture
def kept(tmp_path):
    return KeptCalibrations(tmp_path / "calibrations")


def files(tmp_path):
    return sorted((tmp_path / "calibrations").iterdir())


def test_it_is_there_again_for_the_same_model_and_anchors(kept, tmp_path):
    assert kept.load(MADE.manifest, ANCHORS) is None
    kept.keep(DATA, MADE.manifest, ANCHORS)
    assert KeptCalibrations(tmp_path / "calibrations").load(MADE.manifest, ANCHORS[::-1]) == MADE
    assert kept.load(bytes(32), ANCHORS) is None
    assert kept.load(MADE.manifest, ANCHORS[:1]) is None, "others have not chosen it"
    assert [path.name[33:] for path in files(tmp_path)] == [f"{MADE.digest.hex()}.json"]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data.replace(b"torch", b"Torch"), lambda _: b""]
)
def test_what_the_disk_has_changed_is_thrown_away(kept, tmp_path, damage):
    kept.keep(DATA, MADE.manifest, ANCHORS)
    (path,) = files(tmp_path)
    path.write_bytes(damage(DATA))
    assert kept.load(MADE.manifest, ANCHORS) is None
    assert files(tmp_path) == []


def test_a_file_of_another_model_in_its_place_is_not_used(kept, tmp_path):
    kept.keep(encode_calibration(replace(MADE, manifest=bytes(32))), MADE.manifest, ANCHORS)
    assert kept.load(MADE.manifest, ANCHORS) is None
    assert files(tmp_path) == []


def test_the_next_one_takes_the_place_of_the_last_one(kept, tmp_path):
    other = calibration(mean=0.02)
    kept.keep(DATA, MADE.manifest, ANCHORS)
    kept.keep(encode_calibration(other), MADE.manifest, ANCHORS)
    assert kept.load(MADE.manifest, ANCHORS) == other
    assert len(files(tmp_path)) == 1


def test_the_oldest_ones_make_room(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_module, "MAX_KEPT", 3)
    models = [replace(MADE, manifest=bytes([number]) * 32) for number in range(5)]
    for number, model in enumerate(models):
        kept.keep(encode_calibration(model), model.manifest, ANCHORS)
        for path in files(tmp_path):
            if path.stat().st_mtime > 1000:
                os.utime(path, (number, number))
    found = [kept.load(model.manifest, ANCHORS) for model in models]
    assert found == [None, None, *models[2:]]
