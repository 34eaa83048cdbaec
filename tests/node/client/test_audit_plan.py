"""What is due of a session: only what was drawn, only after it is signed for, and only what can still be opened."""

from hashlib import sha256

import pytest

from node.client.audit_book import Outcome
from node.client.audit_draw import SECRET_BYTES, Draw
from node.client.audit_plan import MAX_KEPT_BYTES, AuditPlan, DueAudit
from node.commitment.chunks import NOTHING, Leaf, Tap
from node.wire import IDS, LOGITS, Step, payload_bytes

SESSION, WIDTH, RECEIPT = bytes(16), 4, b"receipt"
STAGES = ["first", "middle", "last"]
ALL, NONE = Draw(bytes(SECRET_BYTES), 1000), Draw(bytes(SECRET_BYTES), 0)


class Route:
    """Three stages that add one to every byte, and a client that plans audits of them."""

    def __init__(self, draw=ALL, width=WIDTH):
        self.plan = AuditPlan(SESSION, draw, STAGES)
        self.width, self.position, self.segment = width, 0, 0
        self.taps = [Tap("float32") for _ in range(len(STAGES) + 1)]
        self.leaves = [[] for _ in STAGES]

    def step(self, tokens, *, crop=None, rows=None):
        self.position = self.position if crop is None else crop
        shape = (1, tokens, self.width)
        payload = bytes([self.position % 200]) * payload_bytes("float32", shape)
        step = Step(SESSION, self.position, shape, "float32", payload, crop, rows)
        self.plan.sent(step, self.segment)
        chunks = []
        for tap in self.taps:
            chunks.append(tap.add(step, self.segment, "float32", shape, payload))
            payload = bytes(byte + 1 for byte in payload[:1]) * len(payload)
        self._close(chunks)
        last = bytes([self.position % 200 + len(STAGES)]) * len(payload)
        self.plan.answered(step, "float32", shape, last)
        self.position += tokens

    def _close(self, chunks):
        for place, leaves in enumerate(self.leaves):
            leaves += [
                Leaf(went_in.segment, went_in.index, went_in.first, went_in.header, went_in.digest, came_out.digest)
                for went_in, came_out in zip(chunks[place], chunks[place + 1], strict=True)
            ]

    def seal(self):
        self._close([tap.seal() for tap in self.taps])

    def sign(self, place):
        leaves, self.leaves[place] = self.leaves[place], []
        return self.plan.signed(place, leaves, RECEIPT)


@pytest.fixture
def route():
    return Route()


def test_nothing_is_due_before_it_is_signed_for_and_everything_that_was_drawn_is_then(route):
    route.step(130)
    for place, peer in enumerate(STAGES):
        due = route.sign(place)
        assert [(each.peer_id, each.leaf.index, each.previous) for each in due] == [
            (peer, index, STAGES[place - 1] if place else "") for index in range(2)
        ]
        assert [len(each.leaves) for each in due] == [2, 2]
        assert all(each.taken == tuple(leaf.taken for leaf in each.leaves[: each.leaf.index + 1]) for each in due)
        assert all(route.plan.is_whole(each) for each in due)
    route.seal()
    assert [each.tiles[-1].end for place in range(3) for each in route.sign(place)] == [130] * 3


def test_what_is_not_drawn_is_never_due_and_nothing_of_it_is_kept():
    route = Route(NONE)
    route.step(130)
    assert [route.sign(place) for place in range(3)] == [[], [], []]
    assert not route.plan._kept


def test_the_bytes_of_the_last_stage_are_those_that_it_signs_for(route):
    route.step(70)
    for _ in range(58):
        route.step(1)
    for due in route.sign(2):
        assert sha256(b"".join(part.payload for part in due.outputs)).digest() == due.leaf.given
        assert due.outputs[0].first == due.leaf.first
        assert sum(part.shape[1] for part in due.outputs) == 64
    assert not route.plan._kept
    assert route.plan._kept_bytes == 0


def test_of_a_last_stage_more_is_not_kept_than_a_bound_and_what_was_forgotten_is_nobodys_fault():
    route = Route(width=MAX_KEPT_BYTES // 4 // 100)
    for _ in range(128):
        route.step(1)
    assert route.plan._kept_bytes <= MAX_KEPT_BYTES
    first, second = route.sign(2)
    assert (first.outcome, first.owner) == (Outcome.NOT_AUDITABLE, "")
    assert isinstance(second, DueAudit)
    assert sum(part.shape[1] for part in second.outputs) == 64


@pytest.mark.parametrize("change", [{"crop": 30}, {"crop": 100}, {"rows": (0,)}])
def test_what_is_cropped_or_permuted_is_not_auditable_and_nobodys_fault(route, change):
    route.step(128)
    (_, second) = route.sign(0)
    route.step(1, **change)
    route.step(100)
    assert not route.plan.is_whole(second)
    for place in (0, 1, 2):
        found = [each for each in route.sign(place) if not isinstance(each, DueAudit) or each.leaf.index > 1]
        assert {(each.outcome, each.owner) for each in found} == {(Outcome.NOT_AUDITABLE, "")}


def test_a_stage_that_took_anothers_place_and_the_one_behind_are_not_auditable_the_one_before_is(route):
    route.step(64)
    route.plan.replaced(1, 1, ["new"])
    route.segment = 2
    route.step(64)
    route.leaves[0].insert(1, Leaf(1, 0, 0, bytes(32), NOTHING, bytes(32)))  # What it sent again.
    before = route.sign(0)
    assert [(type(each), each.leaf.segment) for each in before] == [(DueAudit, 0), (DueAudit, 2)]
    assert len(before[-1].leaves) == 3, "its receipt covers these, too"
    for place in (1, 2):
        assert {each.outcome for each in route.sign(place)} == {Outcome.NOT_AUDITABLE}


def test_a_prompt_of_which_only_the_last_position_is_answered_leaves_the_rest_of_the_head_unaudited():
    plan = AuditPlan(SESSION, ALL, ["only"])
    step = Step(SESSION, 0, (1, 100, 1), IDS, bytes(400))
    plan.sent(step, 0)
    plan.answered(step, LOGITS, (1, 1, 5), bytes(range(40)))
    leaves = [Leaf(0, 0, 0, bytes(32), bytes(32), NOTHING), Leaf(0, 1, 64, bytes(32), bytes(32), bytes(32))]
    first, second = plan.signed(0, leaves, RECEIPT)
    assert first.outcome is Outcome.NOT_AUDITABLE
    (given,) = second.outputs
    assert (given.first, given.codec, given.shape, given.payload) == (99, LOGITS, (1, 1, 5), bytes(range(40)))
