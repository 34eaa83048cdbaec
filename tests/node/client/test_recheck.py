"""What is kept of answers that a stage has not signed for, and what is said when it is run again."""

import torch

from node.client.recheck import MAX_KEPT_BYTES, Doubt, Kept, Recent, Rechecked, compare, doubt, run_again
from node.errors import StageLost
from node.step_log import StepLog
from node.wire import Result, Step

SESSION = bytes(16)
HIDDEN = 4


def hidden(tokens, seed=0, rows=1):
    return torch.randn(rows, tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def step(position, tokens=1, **changes):
    return Step(SESSION, position, (1, tokens, HIDDEN), "float32", bytes(16 * tokens), **changes)


def result(position, values):
    return Result(SESSION, position, tuple(values.shape), "float32", values.numpy().tobytes())


def answer(number, position, values):
    came = result(position, values)
    return Kept(number, position, came.shape, came.payload, came.shape[1])


def recent(values):
    """Keep one result for each position."""
    kept = Recent()
    for position in range(values.shape[1]):
        kept.sent(step(position))
        kept.answered(answer(position + 1, position, values[:, position : position + 1]))
    return kept


def doubted(values, kept=None, **changes):
    fields = {"peer_id": "it", "kept": kept or recent(values).since(0), "steps": (), "codec": "float32"}
    return Doubt(**(fields | {"left_padding": ()} | changes))


def test_what_every_stage_has_signed_for_is_forgotten():
    kept = recent(hidden(5))
    kept.signed(3)
    assert [entry.number for entry in kept.since(0)] == [4, 5]
    assert [entry.number for entry in kept.since(4)] == [5]


def test_cropped_positions_do_not_count():
    kept = Recent()
    kept.answered(answer(1, 0, hidden(10)))
    kept.answered(answer(2, 10, hidden(1)))
    kept.sent(step(6, crop=6))
    assert [(entry.position, entry.tokens) for entry in kept.since(0)] == [(0, 6)]
    kept.sent(step(6, rows=(0,)))
    assert kept.since(0) == ()


def test_what_is_kept_is_bounded():
    kept, large = Recent(), torch.zeros(1, 2**16, HIDDEN)
    for number in range(1, 30):
        kept.answered(answer(number, 0, large))
    assert sum(len(entry.payload) for entry in kept.since(0)) <= MAX_KEPT_BYTES
    assert kept.since(0)[-1].number == 29


def test_what_comes_out_the_same_up_to_rounding_is_no_difference():
    values = hidden(6)
    rechecked = compare(doubted(values), [result(0, values[:, :4] * 1.01), result(4, values[:, 4:])])
    assert (rechecked.num_positions, rechecked.num_different) == (6, 0)
    assert 0.009 < rechecked.largest < 0.011
    assert "come out the same" in rechecked.in_words()


def test_what_comes_out_otherwise_is_said_with_its_place():
    values, other = hidden(6), hidden(6)
    other[:, 4] = -other[:, 4]
    rechecked = compare(doubted(values), [result(0, other)])
    assert (rechecked.num_different, rechecked.first_different) == (1, 4)
    assert "1 of them come out differently (by up to 200%)" in rechecked.in_words()
    assert "from position 4 on" in rechecked.in_words()


def test_numbers_that_are_none_are_a_difference():
    values = hidden(3)
    values[0, 1, 0] = torch.nan
    rechecked = compare(doubted(values), [result(0, hidden(3))])
    assert (rechecked.num_different, rechecked.first_different) == (1, 1)
    assert rechecked.in_words()


def test_padding_is_not_compared():
    values, other = hidden(4), hidden(4)
    other[:, :2] = 9.0
    assert compare(doubted(values, left_padding=(2,)), [result(0, other)]).num_different == 0


def test_the_history_is_taken_as_far_as_it_is_needed_and_as_new_steps():
    log = StepLog(SESSION, "float32", HIDDEN, 1, 1024)
    for position in (0, 300, 600):
        log.append(step(position, 300))
    kept = Recent()
    kept.answered(answer(1, 0, hidden(300)))
    made = doubt("it", kept.since(0), log.replay(3, 0), "float32", ())
    assert [(piece.position, piece.shape[1]) for piece in made.steps] == [(0, 256), (256, 256)]
    assert {(piece.replay, piece.number) for piece in made.steps} == {(0, 0)}
    assert (made.end, made.num_positions) == (300, 300)


class Chain:
    """A session that gives these results, or is lost."""

    session = b"s" * 16

    def __init__(self, results=None):
        self.results, self.is_closed, self.sent = results, False, []

    async def run(self, steps):
        self.sent = list(steps)
        if self.results is None:
            raise StageLost("Nobody is there.")
        return self.results

    async def close(self):
        self.is_closed = True


async def test_it_is_run_again_in_a_session_of_its_own():
    values = hidden(2)
    chain = Chain([result(0, values)])
    assert (await run_again(doubted(values, steps=(step(0, 2),)), chain)).num_different == 0
    assert chain.is_closed
    assert [sent.session for sent in chain.sent] == [chain.session]


async def test_where_it_cannot_be_run_again_that_is_said():
    chain = Chain()
    rechecked = await run_again(doubted(hidden(2)), chain)
    assert rechecked == Rechecked("it", 2, why_not="Nobody is there.")
    assert "could not be run again elsewhere (Nobody is there.)" in rechecked.in_words()
    assert chain.is_closed
