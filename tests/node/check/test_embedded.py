"""With the shipped calibration nobody honest fails, and who cheats is found as often as foretold."""

import itertools
import math
import random
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from node.check.calibrate import load_ends
from node.check.calibration_file import SHIPPED
from node.check.cheats import SPOILED, spoil
from node.check.check import Verdict, judge, judge_pool
from node.check.final_token import greedy_errors
from node.check.honest import CPU, WAYS, servers_of
from node.check.reference import DTYPES, HELD_IN
from node.check.survey import spans_of
from node.client.audit_draw import SECRET_BYTES, Draw
from node.model.end_parameters import find_end_parameters
from node.model.ends import build_ends
from node.model.tensors import codec_of
from node.wire import CODECS
from tests.node.check.embedded import Cheating, Embedded

TRIALS = 300
EXPERIMENTS = 10
"""Times that so many trials are made of each attacker, share and probability."""
PER_MILLE = 200
"""Share of the chunks that clients audit."""
SESSION = 8
"""Chunks of a session."""
LEVEL = 0.0027
"""Probability of 3 standard errors and more."""
SIMULTANEOUS = 4.01
"""Standard errors that all of 45 are within as probably as one is within 3: 1 - (1 - LEVEL)^(1/45), to both sides."""
BLOCKS = (4, 6)


@pytest.fixture(scope="module")
def embedded():
    return Embedded(num_texts=4, positions=128)


@pytest.fixture(scope="module")
def cheating(embedded):
    return Cheating(embedded)


def failures(embedded, held_in, server, span, codec, blocks, ways):
    """Return how many chunks were judged, and those that failed."""
    scene, num_chunks, failed = embedded.scene(held_in, codec, blocks), 0, []
    for way in ways:
        results = embedded.judge(held_in, codec, blocks, scene.run(span, WAYS[way]))
        num_chunks += len(results)
        failed += [(server.name, way, codec, blocks, result) for result in results if result.verdict is Verdict.FAIL]
    return num_chunks, failed


def test_no_chunk_of_200_of_honest_servers_fails(embedded):
    total, blocks = 0, (5, 6)
    for held_in in HELD_IN:
        for index, server in enumerate(servers_of(held_in, [CPU])):
            span = server.build(embedded.checkpoint, *blocks)
            ways = [*WAYS] if index == 0 else ["8 rows"]
            num_chunks, failed = failures(embedded, held_in, server, span, codec_of(server.dtype), blocks, ways)
            assert not failed
            total += num_chunks
    assert total >= 200


@pytest.mark.full
@pytest.mark.timeout(5400)
def test_no_chunk_of_10000_of_honest_servers_fails():
    # Not the part of the text on which the thresholds of the largest error were found too narrow.
    embedded, total, failed = Embedded(num_texts=2, positions=512, first=1024), 0, []
    for held_in in HELD_IN:
        embedded.load_whole(held_in)
        for index, server in enumerate(servers_of(held_in, [CPU])):
            span = server.build(embedded.checkpoint, 0, embedded.checkpoint.num_blocks)
            for codec in CODECS:
                own = codec == codec_of(server.dtype)
                ways = [*WAYS] if own and index == 0 else ["8 rows"]
                for blocks in spans_of(embedded.checkpoint.num_blocks, every=own and "int" not in held_in):
                    num_chunks, its_failed = failures(embedded, held_in, server, span, codec, blocks, ways)
                    failed += its_failed
                    total += num_chunks
    assert not failed, f"{len(failed)} of {total}: {failed}"
    assert total >= 10_000


@pytest.mark.parametrize("name", ["nf4", "SVD 50 %"])
def test_weights_of_four_bits_and_truncated_ones_fail_in_a_single_chunk(cheating, name):
    results = cheating.judged(WAYS["8 rows"](cheating.spoiled(SPOILED[name]), cheating._given))
    assert {result.verdict for result in results} == {Verdict.FAIL}


@pytest.mark.parametrize("name", ["skipped layer", "noise 5 %", "identity"])
def test_work_that_is_not_done_fails_in_a_single_chunk(cheating, name):
    assert {result.verdict for result in cheating.lazy(name)} == {Verdict.FAIL}


@pytest.mark.parametrize("num_positions", [1, 31])
def test_who_corrupts_a_part_of_each_chunk_fails_like_any_other(cheating, num_positions):
    results = cheating.corrupted(num_positions)
    assert {result.verdict for result in results} == {Verdict.FAIL}


def test_weights_in_8_bits_that_were_not_declared_show_in_the_pool(embedded, cheating):
    results = cheating.judged(WAYS["8 rows"](cheating.spoiled(SPOILED["int8"]), cheating._given))
    honest = cheating.judged(cheating.honest)
    limit = embedded.calibration.standard("bfloat16", "bfloat16", *BLOCKS).pooled_limit
    assert not any(result.verdict is Verdict.FAIL for result in honest)
    draw = random.Random(0)
    found = sum(
        judge_pool([draw.choice(results).ratio for _ in range(8)], limit) is Verdict.FAIL for _ in range(TRIALS)
    )
    accused = sum(
        judge_pool([draw.choice(honest).ratio for _ in range(8)], limit) is Verdict.FAIL for _ in range(TRIALS)
    )
    assert found >= 0.99 * TRIALS
    assert accused == 0


@cache
def recorded(cheating):
    """Return, for every attacker, whether each of its false chunks fails."""
    nf4 = cheating.judged(WAYS["8 rows"](cheating.spoiled(SPOILED["nf4"]), cheating._given))
    sets = {
        "LayerSkipper": cheating.lazy("skipped layer"),
        "Noiser": cheating.lazy("noise 5 %"),
        "KVForgetter": cheating.lazy("forgotten prefix"),
        "Quantiser": nf4,
        "31 of 64": cheating.corrupted(31),
    }
    return {name: [result.verdict is Verdict.FAIL for result in results] for name, results in sets.items()}


@dataclass(frozen=True)
class Cell:
    """How often one attacker was found that cheats on a share of its chunks, in so many chunks that it worked on."""

    attacker: str
    share: float
    num_chunks: int
    foretold: float
    found: tuple[int, ...]  # of 300 trials, in each experiment

    def errors_of(self, trials):
        """Return how far the share that was found is off, in standard errors of so many trials."""
        off = sum(self.found) / (TRIALS * len(self.found)) - self.foretold
        return off / math.sqrt(self.foretold * (1 - self.foretold) / trials)


def chunks_for(probability, q, c, power):
    """Return n in P = 1 - (1 - q c p)^n, rounded up."""
    return math.ceil(math.log(1 - probability) / math.log(1 - q * c * power))


def is_found(chance, attacker, verdicts, share, num_chunks):
    """Let a server work on so many chunks, false ones among them by its own lot, and clients draw what they audit.

    Sessions are of 8 chunks, each with a secret of its own. Honest chunks do not fail, so only false ones are drawn.
    """
    for first in range(0, num_chunks, SESSION):
        false = [index for index in range(min(SESSION, num_chunks - first)) if chance.random() < share]
        draw = Draw(chance.randbytes(SECRET_BYTES), PER_MILLE) if false else None
        if any(draw.is_drawn(attacker, 0, index) and chance.choice(verdicts) for index in false):
            return True
    return False


def probability_beyond(foretold, errors):
    """Return how probable it is that 300 trials are off by more than so many standard errors: exactly, being skewed."""
    room = errors * math.sqrt(foretold * (1 - foretold) * TRIALS)
    within = (k for k in range(TRIALS + 1) if abs(k - foretold * TRIALS) <= room)
    return 1 - math.fsum(math.comb(TRIALS, k) * foretold**k * (1 - foretold) ** (TRIALS - k) for k in within)


@pytest.fixture(scope="module")
def cells(cheating):
    assert not any(result.verdict is Verdict.FAIL for result in cheating.judged(cheating.honest))
    chance, made = random.Random(0), []
    for attacker, verdicts in recorded(cheating).items():
        power = sum(verdicts) / len(verdicts)
        assert power > 0.9, attacker
        for share, probability in itertools.product((1.0, 0.2, 0.05), (0.5, 0.9, 0.99)):
            q = PER_MILLE / 1000
            num_chunks = chunks_for(probability, q, share, power)
            found = tuple(
                sum(is_found(chance, attacker, verdicts, share, num_chunks) for _ in range(TRIALS))
                for _ in range(EXPERIMENTS)
            )
            foretold = 1 - (1 - q * share * power) ** num_chunks
            made.append(Cell(attacker, share, num_chunks, foretold, found))
    return made


def test_cheats_are_found_as_often_as_the_formula_says(cells):
    """Every attacker, at every share and probability, is found within 3 standard errors of 300 trials.

    Of 45 right shares in 300 trials each, one is beyond 3 of its own standard errors with one seed in eight, and a seed
    that was looked for shows nothing. So each is measured in ten times 300 trials. Against 3 standard errors of 300
    chance has no part in it any more: they are 9.5 of these. What chance may do is bounded for all 45 at once, at the
    level that 3 standard errors are for one: by 4.0 for each (Sidak), and by chi-square for all together, to both
    sides, because draws that hang together could also come out too evenly.
    """
    trials = TRIALS * EXPERIMENTS
    assert len(cells) == 45
    assert max(abs(cell.errors_of(TRIALS)) for cell in cells) <= 3
    assert max(abs(cell.errors_of(trials)) for cell in cells) <= SIMULTANEOUS
    total = sum(cell.errors_of(trials) ** 2 for cell in cells)
    below = float(torch.special.gammainc(torch.tensor(len(cells) / 2).double(), torch.tensor(total / 2).double()))
    assert LEVEL / 2 < below < 1 - LEVEL / 2, total


def test_of_experiments_of_300_trials_as_many_are_off_as_chance_says(cells):
    """Found shares scatter as a binomial does, which is skewed near 1: 3 standard errors are not 99.73 % there."""
    for errors in (1, 2, 3):
        expected = [probability_beyond(cell.foretold, errors) for cell in cells for _ in cell.found]
        seen = sum(
            abs(found / TRIALS - cell.foretold) > errors * math.sqrt(cell.foretold * (1 - cell.foretold) / TRIALS)
            for cell in cells
            for found in cell.found
        )
        spread = math.sqrt(math.fsum(p * (1 - p) for p in expected))
        assert abs(seen - math.fsum(expected)) <= 3 * spread + 0.5, (errors, seen, math.fsum(expected))


def test_a_declared_artefact_passes_and_the_same_one_undeclared_does_not(embedded):
    for held_in in (kind for kind in HELD_IN if kind not in DTYPES):
        server = servers_of(held_in, [CPU])[0]
        span = server.build(embedded.checkpoint, *BLOCKS)
        codec = codec_of(server.dtype)
        errors = embedded.scene(held_in, codec, BLOCKS).run(span, WAYS["8 rows"])
        verdicts = {result.verdict for result in embedded.judge(held_in, codec, BLOCKS, errors)}
        assert Verdict.FAIL not in verdicts
        assert Verdict.PASS in verdicts
        undeclared = embedded.scene("float32", codec, BLOCKS).run(span, WAYS["8 rows"])
        assert {result.verdict for result in embedded.judge("float32", codec, BLOCKS, undeclared)} == {Verdict.FAIL}


class Last:
    """A last stage of some blocks, and what the calibration says of its answers."""

    def __init__(self, embedded, held_in, num_blocks=2):
        checkpoint, self.held_in = embedded.checkpoint, held_in
        self.blocks = (checkpoint.num_blocks - num_blocks, checkpoint.num_blocks)
        server = servers_of(held_in, [CPU])[0]
        self.codec = codec_of(server.dtype)
        self.parameters = find_end_parameters(checkpoint.config)
        self.exact, self.ends = (load_ends(checkpoint, self.parameters, kind) for kind in (torch.float32, server.dtype))
        self.scene = embedded.scene(held_in, self.codec, self.blocks)
        self.outputs = self.scene.outputs(server.build(checkpoint, *self.blocks), WAYS["8 rows"])
        self.standard = embedded.calibration.answer_standard(held_in, self.codec, self.blocks[0])

    def judged(self, ends):
        errors = self.scene.answer_errors(self.outputs, ends, self.exact)
        return [judge([row], self.standard) for row in errors.tolist()]

    def judged_tokens(self, which):
        """Judge tokens of each position that are the likeliest (0), the second likeliest (1), and so on."""
        errors = [
            greedy_errors(self.exact.logits(due)[0], self.ends.logits(chunk)[0].topk(which + 1).indices[:, which])
            for chunk, due in zip(self._chunks(self.outputs), self._chunks(self.scene.expected), strict=True)
        ]
        return [judge([row], self.standard) for row in torch.stack(errors).tolist()]

    @staticmethod
    def _chunks(hidden):
        return [chunk for text in hidden.split(1) for chunk in text.split(64, dim=1)]


@pytest.mark.parametrize("held_in", HELD_IN)
def test_an_honest_head_behind_its_blocks_passes_and_one_that_lies_in_any_way_fails(embedded, held_in):
    last = Last(embedded, held_in)
    assert {result.verdict for result in last.judged(last.ends)} == {Verdict.PASS}
    assert {result.verdict for result in last.judged_tokens(0)} == {Verdict.PASS}
    assert {result.verdict for result in last.judged_tokens(1)} == {Verdict.FAIL}
    for false in (_coarse(embedded.checkpoint, last.parameters), Noisy(last.ends, 0.05), OnePromoted(last.ends)):
        assert {result.verdict for result in last.judged(false)} == {Verdict.FAIL}, false


def _coarse(checkpoint, parameters):
    tensors = spoil(checkpoint.load_client(dtype=torch.float32), SPOILED["nf4"], torch.Generator())
    return build_ends(checkpoint.config, tensors, parameters, embeds=True, heads=True, dtype=torch.float32, device=CPU)


@dataclass
class Noisy:
    """A head that adds a part of their spread to all logits."""

    ends: object
    share: float

    def logits(self, hidden):
        due = self.ends.logits(hidden)
        noise = torch.randn(due.shape, generator=torch.Generator().manual_seed(5))
        return due + self.share * due.std(dim=-1, keepdim=True) * noise


@dataclass
class OnePromoted:
    """A head that makes one token of each chunk the likeliest that is not, and is right elsewhere."""

    ends: object

    def logits(self, hidden):
        due = self.ends.logits(hidden).clone()
        due[:, 20, 17] = due[:, 20].max() + 1
        return due


def test_the_shipped_file_is_of_the_shipped_model_and_small(embedded):
    assert SHIPPED.stat().st_size < 64 * 1024
    for figures in (embedded.calibration.honest, embedded.calibration.answers):
        assert [(one.held_in, one.codec) for one in figures] == [*itertools.product(HELD_IN, CODECS)]
    assert torch.isfinite(embedded.calibration.scales(0, 8)).all()
