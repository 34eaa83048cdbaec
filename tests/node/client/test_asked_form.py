"""What travels between a client and who judges for it comes back as it went; anything else is refused, not believed."""

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from dht.codec import encode
from dht.errors import BadRecord
from node.agreement.offers import Offer, padding_digest, profile_digest
from node.client.asked_form import (
    MAX_ASKED_BYTES,
    MAX_ASKED_TOKENS,
    Answer,
    Question,
    leaf_of,
    pack_opening,
    pack_verdict,
    tokens_of,
    unpack_opening,
    unpack_verdict,
)
from node.client.audit_book import Measured, Outcome, Verdict
from node.client.audit_opening import Given, Opening
from node.client.route import Stage
from node.client.thin_terms import ThinTerms
from node.errors import BadOpening, CannotCheck
from tests.node.verify.tiny import CONSUMER, PROVIDER

HIDDEN = Given(0, "float32", (2, 70, 4), bytes(2 * 70 * 16))
MEASURED = Measured(1, 2, 3, bytes(32))


def opening(**changes):
    made = Opening(
        manifest=bytes(32), stage=Stage(PROVIDER.peer_id, 1, 3, ("/ip4/127.0.0.1/tcp/1",), weights="bfloat16"),
        previous=CONSUMER.peer_id, dtype="bfloat16", profile=profile_digest("bfloat16", "float32"), codec="float32",
        session=bytes(16), segment=2, index=1, first=64, end=70, left_padding=(3, 0), thin=None, inputs=HIDDEN,
        outputs=(replace(HIDDEN, first=64, shape=(2, 6, 4), payload=bytes(2 * 6 * 16)),), leaves=(), receipt=b"r",
        offer=b"o", offer_signature=b"s", accept_signature=b"a", headers={},
    )  # fmt: skip
    return replace(made, **changes)


def offer_for(made):
    return Offer(
        session=bytes(range(16)), consumer=CONSUMER.peer_id, provider=PROVIDER.peer_id, manifest=made.manifest,
        start=made.stage.start, end=made.stage.end, profile=made.profile, padding=padding_digest(made.left_padding),
        lane=7, max_tokens=tokens_of(made), t=0,
    )  # fmt: skip


ENDS = [
    None,
    ThinTerms(64),
    ThinTerms(0, (0.0, 0, 1.0, 5)),
    ThinTerms(0, (0.7, 40, 0.9, 5)),
]


@pytest.mark.parametrize("thin", ENDS)
def test_what_is_judged_comes_as_it_went_and_whose_it_is_does_not_go(thin):
    made = opening(thin=thin)
    came = unpack_opening(pack_opening(made), offer_for(made))
    same = ("manifest", "dtype", "profile", "codec", "first", "end", "left_padding", "inputs", "outputs")
    assert [getattr(came, name) for name in same] == [getattr(made, name) for name in same]
    assert (came.stage.start, came.stage.end, came.stage.weights) == (1, 3, "bfloat16")
    assert PROVIDER.peer_id.encode() not in pack_opening(made)
    assert came.stage.peer_id == came.previous == ""
    assert (came.receipt, came.offer, came.leaves) == (b"", b"", ())
    if thin is None:
        assert came.thin is None
    else:
        assert came.thin.top == thin.top
        assert (came.thin.sampling is None) == (thin.sampling is None)
        if thin.sampling is not None:
            assert (came.thin.sampling[0] == 0) == (thin.sampling[0] == 0), "drawn or not"


@pytest.mark.parametrize(
    "changes",
    [
        {"profile": bytes(32)},
        {"padding": bytes(32)},
        {"max_tokens": 139},
        {"max_tokens": 141},
    ],
)
def test_something_else_than_was_offered_for_is_not_judged(changes):
    made = opening()
    with pytest.raises(BadOpening, match="not what the offer is for"):
        unpack_opening(pack_opening(made), replace(offer_for(made), **changes))


def test_an_opening_in_which_nothing_came_out_is_refused():
    made = replace(opening(), outputs=())
    with pytest.raises(BadOpening, match="nothing that came out"):
        unpack_opening(pack_opening(made), offer_for(made))


def test_too_much_is_not_sent():
    long = replace(HIDDEN, shape=(2, MAX_ASKED_TOKENS // 2 + 1, 4))
    with pytest.raises(CannotCheck, match="too large"):
        pack_opening(opening(inputs=long, end=long.shape[1]))
    large = replace(HIDDEN, payload=bytes(MAX_ASKED_BYTES))
    with pytest.raises(CannotCheck, match="too large"):
        pack_opening(opening(inputs=large))


@drawn(st.binary(max_size=300))
def test_no_bytes_raise_anything_else_than_they_should(data):
    for read in (Question.from_bytes, Answer.from_bytes, unpack_verdict):
        with contextlib.suppress(BadRecord):
            read(data)
    with pytest.raises(BadOpening):
        unpack_opening(data, offer_for(opening()))


@drawn(st.data())
def test_a_changed_opening_is_refused_or_is_bounded(data):
    made = opening()
    blob = bytearray(pack_opening(made))
    at = data.draw(st.integers(0, 80) | st.integers(0, len(blob) - 1))
    blob[at] ^= data.draw(st.integers(1, 255))
    try:
        came = unpack_opening(bytes(blob), offer_for(made))
    except BadOpening:
        return
    assert tokens_of(came) == tokens_of(made)
    assert came.profile == profile_digest(came.stage.weights, came.codec)


def test_questions_and_answers_come_as_they_went():
    asked = Question(b"offer", bytes(64), 5)
    assert Question.from_bytes(asked.to_bytes()) == asked
    taken, refused = Answer(bytes(64)), Answer(b"", "busy", "No time now.")
    assert Answer.from_bytes(taken.to_bytes()) == taken
    assert Answer.from_bytes(refused.to_bytes()) == refused
    with pytest.raises(BadRecord):
        Question.from_bytes(Question(b"offer", bytes(64), MAX_ASKED_BYTES + 1).to_bytes())


@pytest.mark.parametrize("outcome", [Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE])
def test_verdicts_come_as_they_went(outcome):
    verdict = Verdict(outcome, "the median 1 is above 0.1", MEASURED)
    assert unpack_verdict(pack_verdict(verdict)) == verdict


def test_words_of_a_judge_are_cut_and_printable():
    verdict = Verdict(Outcome.INCONCLUSIVE, "a\nb" + "ü" * 400)
    came = unpack_verdict(pack_verdict(verdict))
    assert came.why.startswith("a b")
    assert came.why.isprintable()
    assert len(came.why.encode()) <= 400


@pytest.mark.parametrize(
    "fields",
    [
        [0, "passed", []],
        [1, "failed", []],
        [1, "failed", [3, 2, 1, bytes(32)]],
        [1, "failed", [1, 2, 3, bytes(31)]],
        [3, "", []],
        [2, "a\nb", []],
        [2, "", [], 0],
    ],
)
def test_a_judge_that_says_nothing_sound_is_not_believed(fields):
    with pytest.raises(BadRecord):
        unpack_verdict(encode(fields))


def test_the_leaf_is_of_what_was_judged_and_of_what_was_said():
    leaves = {leaf_of(blob, said).hash(bytes(16)) for blob in (b"a", b"b") for said in (b"c", b"d")}
    assert len(leaves) == 4
