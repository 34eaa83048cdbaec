"""A model is calibrated from its own honest servers, whose thresholds let them pass and find those who cheat."""

import pytest
import torch

from node.check.calibrate import Texts, calibrate, load_subject
from node.check.calibration import decode_calibration, encode_calibration
from node.check.separation import separate
from node.check.survey import spans_of
from node.model.checkpoint import Checkpoint
from node.wire import CODECS
from tests.families import build

TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def texts(seed):
    return Texts(torch.randint(3, 128, (2, 64), generator=torch.Generator().manual_seed(seed)), "drawn at random")


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    build("llama", TINY).save_pretrained(directory)
    return load_subject(Checkpoint.open(str(directory)), texts(0))


@pytest.fixture(scope="module")
def calibration(subject):
    told = []
    made = calibrate(
        subject, texts(0), seed=0, full=False, kinds=["bfloat16"], progress=lambda *step: told.append(step)
    )
    assert told[-1][1] == told[-1][2]
    return made


def test_every_codec_and_length_has_figures_and_the_file_says_what_it_was_made_from(subject, calibration):
    assert [honest.codec for honest in calibration.honest] == [*CODECS]
    for honest in calibration.honest:
        assert [(start, end) for start, end, _ in honest.means] == [(0, 1), (0, 2), (1, 2)]
        assert [length for length, _ in honest.tails] == [1, 2]
    assert [answers.codec for answers in calibration.answers] == [*CODECS]
    for answers in calibration.answers:
        assert [(start, end) for start, end, _ in answers.means] == [(0, 2), (1, 2)]
        assert [length for length, _ in answers.tails] == [1, 2]
    made = calibration.made_from
    assert "bfloat16 on cpu: decoded" in made.variants
    assert "bfloat16 eager attention on cpu: 8 rows" in made.variants
    assert (made.num_positions, made.seed) == (128, 0)
    assert made.text.startswith("drawn at random; sha256 of 2 x 64 ids ")
    assert decode_calibration(encode_calibration(calibration), manifest=subject.checkpoint.manifest32) == calibration


def test_scales_are_what_the_blocks_add(subject, calibration):
    added = (subject.entering[1] - subject.entering[0]).square().mean(dim=(0, 1)).sqrt()
    torch.testing.assert_close(calibration.scales(0, 1).float(), added, rtol=1e-4, atol=1e-6)


def test_on_other_texts_honest_servers_do_not_fail_and_coarse_cheats_do(subject, calibration):
    rows = separate(subject, calibration, seed=0, progress=lambda *_: None)
    by_cheat = {}
    for row in rows:
        by_cheat.setdefault(row.cheat, []).append(row)
    assert all(len(its) == 2 for its in by_cheat.values())
    assert "forgotten prefix" not in by_cheat  # These texts are of one chunk.
    assert all(row.failed == 0 and row.chunks_needed is None for row in by_cheat["honest"])
    for cheat in ("nf4", "SVD 50 %", "skipped layer", "identity", "fp8"):
        assert all(row.failed == 1 and row.chunks_needed == 1 for row in by_cheat[cheat]), cheat


@pytest.mark.parametrize(
    ("num_blocks", "expected"),
    [
        (1, [(0, 1)]),
        (3, [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3), (0, 3)]),
        (4, [(0, 1), (1, 2), (2, 3), (3, 4), (0, 2), (2, 4), (0, 4)]),
    ],
)
def test_each_block_is_in_a_span_of_each_length(num_blocks, expected):
    assert spans_of(num_blocks, every=False) == expected


def test_every_span_of_a_length_can_be_asked_for():
    assert [blocks for blocks in spans_of(8, every=True) if blocks[1] - blocks[0] == 4] == [
        (n, n + 4) for n in range(5)
    ]
