"""The command writes a calibration that can be read, tells what it separates, and says in a sentence what is amiss."""

import io
import json

import pytest

from node.check.calibration_file import read_calibration
from node.errors import BadCalibration, UserError
from node.model.checkpoint import Checkpoint
from node.run.calibrate import CalibrateOptions, run_calibrate, table
from node.run.events import Reporter
from tests.families import build
from tests.swarm.models import character_tokenizer

TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    build("llama", TINY).save_pretrained(directory)
    character_tokenizer().save_pretrained(directory)
    return directory


def options(model, out, **changes):
    fields = {"revision": None, "text": None, "seed": 0, "full": False, "as_json": False, "num_threads": None}
    return CalibrateOptions(model=str(model), home=out.parent, out=out, num_chunks=2, **{**fields, **changes})


@pytest.mark.full
def test_a_model_is_calibrated_from_texts_of_its_own(model, tmp_path):
    out, err = io.StringIO(), io.StringIO()
    run_calibrate(options(model, tmp_path / "calibration.json"), Reporter(events_json=True, out=out, err=err))
    written = read_calibration(tmp_path / "calibration.json", Checkpoint.open(str(model)).manifest32)
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert events[0]["event"] == "calibrated"
    assert events[0]["sha256"] == written.digest.hex()
    separations = [event for event in events if event["event"] == "separation"]
    assert {event["cheat"] for event in separations} >= {"honest", "int8", "nf4", "identity", "forgotten prefix"}
    assert all(event["failed"] == 0 for event in separations if event["cheat"] == "honest")
    assert all(event["chunks_needed"] == 1 for event in separations if event["cheat"] == "identity")
    assert written.made_from.text.startswith("drawn from the model, seed 0")
    assert "sha256" in err.getvalue()
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


def test_a_text_that_is_too_short_or_is_none_is_refused_in_a_sentence(model, tmp_path):
    reporter = Reporter(events_json=False, out=io.StringIO(), err=io.StringIO())
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("too short")
    binary.write_bytes(b"\xff\xfe")
    for path, word in ((short, "--chunks"), (binary, "UTF-8"), (tmp_path / "missing", "name a file")):
        with pytest.raises(UserError, match=word):
            run_calibrate(options(model, tmp_path / "calibration.json", text=path), reporter)
    assert not (tmp_path / "calibration.json").exists()


def test_a_calibration_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BadCalibration, match=r"nowhere\.json"):
        read_calibration(tmp_path / "nowhere.json")


def test_the_table_says_where_a_cheat_is_not_found():
    from node.check.separation import Separation

    rows = [
        Separation("bfloat16", "bfloat16", "honest", 1, 8, 0.01, 1.0, 0.0, 1.0, None),
        Separation("bfloat16", "bfloat16", "int8", 1, 8, 0.02, 1.6, 0.0, 0.5, 8),
        Separation("bfloat16", "bfloat16", "drift 1 %", 1, 8, 0.01, 1.1, 0.0, 1.0, None),
        Separation("bfloat16", "bfloat16", "nf4", 1, 8, 0.1, 10.0, 1.0, 0.0, 1),
    ]
    head, honest, pooled, unseen, seen = table(rows)
    assert head.split()[-2:] == ["found", "in"]
    assert honest.rstrip().endswith("100%")
    assert pooled.endswith("8 chunks")
    assert unseen.endswith("not in 64 chunks")
    assert seen.endswith("1 chunk")
