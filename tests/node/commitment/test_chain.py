"""Whatever a session does, every stage commits to having taken what the one before commits to having given."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dht.identity import Identity
from tests.node.commitment.sessions import MAX_LENGTH, WIDTHS, Session

IDENTITIES = [Identity.ephemeral() for _ in range(200)]


class AnySession(RuleBasedStateMachine):
    """A random session: prefill, decode, crops, beams, rows, and stages that are replaced at any moment."""

    @initialize(
        stages=st.integers(1, 4), codec=st.sampled_from(sorted(WIDTHS)), rows=st.integers(1, 3),
        ends=st.sampled_from(["", "top", "sampling"]),
    )  # fmt: skip
    def begin(self, stages, codec, rows, ends):
        self.session = Session(IDENTITIES, stages, codec, ends, rows)

    @precondition(lambda self: not self.session.waiting and self.session.length < MAX_LENGTH - 300)
    @rule(data=st.data())
    def call(self, data):
        session = self.session
        rows = crop = None
        if session.length and data.draw(st.booleans(), "crop"):
            crop = data.draw(st.integers(max(0, session.length - 70), session.length))
        if session.length and data.draw(st.booleans(), "select"):
            rows = tuple(data.draw(st.lists(st.integers(0, session.rows - 1), min_size=1, max_size=3)))
        tokens = data.draw(
            st.one_of(st.just([1]), st.lists(st.integers(1, 30), min_size=1, max_size=4), st.just([150, 100, 7]))
        )
        session.call(tokens, crop, rows, data.draw(st.integers(1, 40)))

    @rule(place=st.integers(0, 3), count=st.integers(1, 5))
    def work(self, place, count):
        stage = self.session.stages[place % len(self.session.stages)]
        for _ in range(min(count, len(stage.inbox))):
            stage.work()

    @rule()
    def receive(self):
        if self.session.inbox:
            self.session.receive()

    @rule()
    def settle(self):
        self.session.settle()

    @rule(place=st.integers(0, 3))
    def report(self, place):
        self.session.stages[place % len(self.session.stages)].report()

    @rule(place=st.integers(0, 3))
    def deliver(self, place):
        place %= len(self.session.stages)
        if self.session.stages[place].reports:
            self.session.deliver(place)

    @rule(first=st.integers(0, 3), count=st.integers(1, 2), new=st.integers(1, 2))
    def replace(self, first, count, new):
        first %= len(self.session.stages)
        last = min(first + count, len(self.session.stages)) - 1
        if len(self.session.stages) - (last + 1 - first) + new <= 5:
            self.session.replace(first, last, new)

    @invariant()
    def state_is_bounded_by_what_is_on_the_way(self):
        if hasattr(self, "session"):
            for stage in self.session.stages:
                assert len(stage.commitment._vouchers) <= 256

    def teardown(self):
        if hasattr(self, "session"):
            self.session.end()
            assert self.session.check.is_complete


TestAnySession = AnySession.TestCase
TestAnySession.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
