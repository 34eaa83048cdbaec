"""Clients and stages do what they like at one server, rule by rule; when they have gone, nothing of it is left."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.fuzz.draw import Draw
from tests.fuzz.peers import Peers

some = st.binary(max_size=24)


class Crowd(RuleBasedStateMachine):
    """Each rule is one thing that somebody does; the bytes say who and how."""

    @initialize(data=some)
    def begin(self, data):
        self.peers = Peers(Draw(data))

    def _do(self, data, act):
        self.peers.draw = Draw(data)
        self.peers.do(act)

    @rule(data=some)
    def a_client_opens(self, data):
        self._do(data, self.peers.open)

    @rule(data=some)
    def a_stage_opens_its_stream(self, data):
        self._do(data, self.peers.open_push)

    @rule(data=some)
    def a_step_comes(self, data):
        self._do(data, self.peers.push)

    @rule(data=some)
    def a_client_signs(self, data):
        self._do(data, self.peers.cosign)

    @rule(data=some)
    def a_client_repairs(self, data):
        self._do(data, self.peers.adopt if data[:1] > b"\x80" else self.peers.replay)

    @rule(data=some)
    def a_client_sends_another_frame(self, data):
        self._do(data, self.peers.control)

    @rule(data=some)
    def somebody_sends_junk(self, data):
        self._do(data, self.peers.junk)

    @rule(data=some)
    def somebody_leaves(self, data):
        self._do(data, self.peers.leave)

    @rule(data=some)
    def time_passes(self, data):
        self._do(data, self.peers.turn)

    @rule(data=some)
    def things_become_slow_or_fail(self, data):
        self._do(data, self.peers.conditions)

    @rule(data=some)
    def the_server_ends_what_it_may(self, data):
        self._do(data, self.peers.server)

    def teardown(self):
        if hasattr(self, "peers"):
            self.peers.serving.end()


def test_a_server_outlives_whatever_peers_do_and_keeps_nothing_of_it():
    run_state_machine_as_test(Crowd, settings=settings(max_examples=50, stateful_step_count=40, database=None))
