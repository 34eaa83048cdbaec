"""A ledger against a dictionary that never forgets, under whatever is done to it."""

import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dht.errors import Contradiction
from dht.receipts.ledger import Ledger
from dht.work import WorkKind
from tests.dht.receipts.ledger_kit import CONSUMER, OTHER, OWN, envelope, made

ME = OWN.peer_id
LANES = st.integers(1, 2)
PEERS = st.sampled_from([CONSUMER, OTHER])
KINDS = st.sampled_from([WorkKind.DECODE, WorkKind.PREFILL])
SEQS = st.integers(1, 40)


class LedgerAndModel(RuleBasedStateMachine):
    """Two processes of one home, which crash and start again; one of them signs."""

    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "ledger.sqlite"
        self.ledgers = [Ledger.open(self.path) for _ in range(2)]
        self.crashed = []
        self.receipts = {}  # (slot, seq) -> amount
        self.given = set()  # (slot, seq)

    def teardown(self):
        for ledger in (*self.ledgers, *self.crashed):
            ledger.close()
        self.directory.cleanup()

    @rule(which=st.integers(0, 1), peer=PEERS, lane=LANES, kind=KINDS, seq=SEQS)
    def reserve(self, which, peer, lane, kind, seq):
        slot = made(OWN, peer, lane=lane, work_kind=kind).slot
        number = self.ledgers[which].reserve(ME, slot, seq)
        assert number >= seq
        assert (slot, number) not in self.given
        self.given.add((slot, number))

    @rule(which=st.integers(0, 1), peer=PEERS, lane=LANES, kind=KINDS, seq=SEQS, amount=st.integers(1, 3))
    def append(self, which, peer, lane, kind, seq, amount):
        receipt = made(OWN, peer, lane=lane, work_kind=kind, seq=seq, amount=amount)
        data = envelope(OWN, peer, lane=lane, work_kind=kind, seq=seq, amount=amount)
        held = self.receipts.get((receipt.slot, seq))
        try:
            assert self.ledgers[which].append(ME, data) is (held is None)
            assert held in (None, amount)
        except Contradiction:
            assert held not in (None, amount)
        self.receipts.setdefault((receipt.slot, seq), amount)
        self.given.add((receipt.slot, seq))

    @rule(which=st.integers(0, 1))
    def crash(self, which):
        self.crashed.append(self.ledgers[which])
        self.ledgers[which] = Ledger.open(self.path)

    @rule(which=st.integers(0, 1))
    def restart(self, which):
        self.ledgers[which].close()
        self.ledgers[which] = Ledger.open(self.path)

    @precondition(lambda self: self.receipts)
    @rule(which=st.integers(0, 1))
    def verify(self, which):
        assert self.ledgers[which].verify() == (len(self.receipts), [])

    @invariant()
    def the_newest_are_the_model_s(self):
        newest = {}
        for (slot, seq), amount in self.receipts.items():
            newest[slot] = max(newest.get(slot, (0, 0)), (seq, amount))
        for ledger in self.ledgers:
            found = [signed.record for signed in ledger.newest(ME)]
            assert {receipt.slot: (receipt.seq, receipt.amount) for receipt in found} == newest
            assert len(found) == len(newest)
            for peer in (CONSUMER.peer_id, OTHER.peer_id):
                signed_for: Counter[WorkKind] = Counter()
                for slot, (_, amount) in newest.items():
                    if slot.consumer == peer:
                        signed_for[slot.work_kind] += amount
                assert ledger.history_of(ME, peer) == signed_for


TestLedgerAndModel = LedgerAndModel.TestCase
TestLedgerAndModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
