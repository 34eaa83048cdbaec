"""Two accounts against each other, whatever becomes of their messages, their processes and the time."""

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dht.identity import verify
from dht.rules import Rules
from dht.work import Receipt, WorkKind
from node.agreement.consumer import ConsumerAccount
from node.agreement.exposure import UNITS, kind_of
from node.agreement.offers import ConsumerLanes, LaneBook
from node.agreement.provider import ProviderAccount
from node.errors import Refused
from node.wire import Step
from tests.node.agreement.dealings import CONSUMER, NOW, PROVIDER, Reservations, Signer, offer

RULES = Rules(epoch_s=20)
EVERY = 64


def bodies_by_number(signer):
    """Return the different bodies signed for each slot and number."""
    found = {}
    for body in signer.bodies:
        receipt = Receipt.from_body(body)
        found.setdefault((receipt.slot, receipt.seq), set()).add(body)
    return found


def totals(envelope_bodies):
    """Return tokens by the newest receipt of each slot."""
    newest = {}
    for receipt in map(Receipt.from_body, envelope_bodies):
        if receipt.slot not in newest or newest[receipt.slot].seq < receipt.seq:
            newest[receipt.slot] = receipt
    return sum(receipt.amount for receipt in newest.values())


class Dealings(RuleBasedStateMachine):
    """Sessions between a consumer and a provider; a side that crashes forgets all but what it has written down."""

    @initialize(newcomer=st.booleans(), seed=st.integers(0, 2**32))
    def begin(self, newcomer, seed):
        self.random = Random(seed)
        self.every = 16 if newcomer else EVERY
        self.now_s = NOW
        self.served = self.lost = self.past_due = self.sessions = 0
        self.written = {"provider": Reservations(), "consumer": Reservations()}
        self.signers = {"provider": Signer(PROVIDER), "consumer": Signer(CONSUMER)}
        self.ledgers = {"provider": [], "consumer": []}
        self.used = set()
        self.book, self.lanes = LaneBook(), ConsumerLanes(self.random)
        self.open()

    def open(self):
        """Open a session; a lane that the provider does not take is left for another one."""
        epoch = RULES.epoch_of(self.now_s)
        while True:
            self.consumer_lane = self.lanes.take(PROVIDER.peer_id, offer().terms)
            self.offer = offer(lane=self.consumer_lane.number, t=int(self.now_s))
            key = (self.offer.lane, epoch)
            try:
                is_known = any(slot.lane == self.offer.lane for slot in self.written["provider"].last)
                self.lane = self.book.open(self.offer, epoch, was_used=is_known)
            except Refused:
                continue
            self.used.add(key)
            break
        self.provider = ProviderAccount(
            self.lane, RULES, cap=self.every * UNITS, every=self.every, sign=self.signers["provider"], verify=verify,
            reserve=self.written["provider"],
        )  # fmt: skip
        self.consumer = ConsumerAccount(
            self.offer, self.consumer_lane, RULES, sign=self.signers["consumer"], verify=verify,
            reserve=self.written["consumer"],
        )  # fmt: skip
        self.steps = 0
        self.sessions += 1
        self.to_consumer, self.to_provider = [], []

    @rule(tokens=st.sampled_from([1, 1, 1, 3, 16, 17, 40]), rows=st.integers(1, 3), known=st.booleans())
    def step(self, tokens, rows, known):
        kind = kind_of(Step(bytes(16), 0, (rows, tokens, 1), "float32", b""))
        amount = rows * tokens
        known_tokens = amount if known and kind is WorkKind.PREFILL else 0
        if not (self.provider.has_room(kind, amount) or self.provider.can_run(kind, amount, self.now_s)):
            self.ask()
            return
        self.steps += 1
        self.consumer.sent(self.steps, kind, amount, 10 * amount, 20 * amount, self.now_s)
        self.provider.count(kind, amount, 10 * amount, 20 * amount, self.now_s, known_tokens=known_tokens)
        self.served += amount - known_tokens
        self.past_due = max(self.past_due, amount)
        self.ask()

    def ask(self, *, is_last=False):
        if self.provider.is_due(self.now_s, is_last=is_last):
            self.to_consumer.append((self.provider.checkpoint((), b"r" * 32, self.steps), b"r" * 32))

    @rule(count=st.integers(1, 40))
    def decode(self, count):
        for _ in range(count):
            self.step(1, 1, False)

    @precondition(lambda self: self.to_consumer)
    @rule(which=st.integers(0, 9), fate=st.sampled_from(["take", "take", "take", "repeat", "lose"]))
    def give_consumer(self, which, fate):
        """Any message may come next, come again, or not at all."""
        which %= len(self.to_consumer)
        made, root = self.to_consumer[which] if fate == "repeat" else self.to_consumer.pop(which)
        if fate == "lose":
            return
        answer = self.consumer.check(made, root, self.now_s)
        if answer is not None:
            self.to_provider.append(answer)
            self.ledgers["consumer"].extend(made.receipts)

    @precondition(lambda self: self.to_provider)
    @rule(which=st.integers(0, 9), fate=st.sampled_from(["take", "take", "take", "repeat", "lose"]))
    def give_provider(self, which, fate):
        which %= len(self.to_provider)
        answer = self.to_provider[which] if fate == "repeat" else self.to_provider.pop(which)
        if fate != "lose":
            self.ledgers["provider"].extend(envelope.body for envelope in self.provider.cosigned(answer))

    @rule()
    def send_again(self):
        self.to_consumer.extend((made, b"r" * 32) for made in self.provider.unanswered())

    @rule(passed_s=st.sampled_from([0.5, 3.0, 25.0]))
    def time_passes(self, passed_s):
        self.now_s += passed_s
        self.ask()

    @rule(crashed=st.sampled_from(["provider", "consumer"]))
    def crash(self, crashed):
        self.count_as_lost()
        if crashed == "provider":
            self.book = LaneBook()
            self.provider = None
        else:
            self.lanes = ConsumerLanes(self.random)
            self.book.close(self.lane, is_settled=self.provider.is_settled)
        self.open()

    @rule()
    def close(self):
        """End a session well: what is not answered is sent again until it is."""
        self.settle()
        self.book.close(self.lane, is_settled=True)
        self.lanes.give_back(self.consumer_lane, PROVIDER.peer_id, self.offer.terms)
        self.open()

    def settle(self):
        self.ask(is_last=True)
        for _ in range(100):
            for made in self.provider.unanswered():
                answer = self.consumer.check(made, b"r" * 32, self.now_s)
                if answer is not None:
                    self.ledgers["consumer"].extend(made.receipts)
                    self.ledgers["provider"].extend(each.body for each in self.provider.cosigned(answer))
            self.ask(is_last=True)
            if self.provider.is_settled:
                break
        assert self.provider.is_settled
        assert self.consumer.is_settled

    def count_as_lost(self):
        """What a crash may cost: what was served and not signed for, which the cap bounds."""
        self.lost += self.unsigned

    @property
    def unsigned(self):
        """Tokens that were served and are not signed for, where nobody has crashed."""
        return self.provider.unsigned_tokens

    @invariant()
    def nobody_signs_two_bodies_for_one_number(self):
        if hasattr(self, "signers"):
            for signer in self.signers.values():
                assert all(len(bodies) == 1 for bodies in bodies_by_number(signer).values())

    @invariant()
    def both_count_the_same_up_to_what_is_not_signed(self):
        if not hasattr(self, "signers"):
            return
        mine, theirs = totals(self.ledgers["provider"]), totals(self.ledgers["consumer"])
        assert mine <= theirs <= self.served
        assert self.served == mine + self.lost + self.unsigned
        assert self.provider.exposure <= max(self.every * UNITS, self.past_due * UNITS)

    def teardown(self):
        if hasattr(self, "signers"):
            self.settle()
            mine, theirs = totals(self.ledgers["provider"]), totals(self.ledgers["consumer"])
            assert self.served - self.lost <= mine <= theirs <= self.served


TestDealings = Dealings.TestCase
TestDealings.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
