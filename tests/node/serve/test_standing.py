"""What a server grants a client that does not sign, session after session, over restarts; and whose clock is wrong."""

import contextlib
import time

import pytest

from dht.identity import Identity
from dht.receipts.ledger import Ledger
from dht.work import WorkKind
from node.errors import Refused
from node.serve import contract
from tests.node.serve.contracted import Dealt, contracts, dealings

SERVER, CLIENT = Identity.ephemeral(), Identity.ephemeral()
TOKEN = 16
"""Exposure of a token."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("node.agreement.provider.COSIGN_TIMEOUT_S", 0.05)
    monkeypatch.setattr(contract, "COSIGN_TIMEOUT_S", 0.05)
    monkeypatch.setattr(contract, "_LOOK_S", 0.02)


class Town:
    """A server and its ledger, which it may be started anew with; and a client that keeps nothing."""

    def __init__(self, path):
        self._path = path
        self.dealings = dealings(CLIENT, Ledger.open(None), time.time)
        self.restart()

    def restart(self):
        self.dealings.forget_lanes(SERVER.peer_id)
        self.ledger = Ledger.open(self._path)
        self.contracts = contracts(SERVER, self.ledger, time.time)

    async def session(self, tokens, *, signs=True, **options):
        """Run a session; return the tokens that were served."""
        dealt, served = await Dealt(self.contracts, self.dealings, CLIENT, SERVER, signs=signs).open(), 0
        with contextlib.suppress(Refused):
            for _ in range(tokens):
                await dealt.step()
                served += 1
        await dealt.close(**options)
        return served


@pytest.fixture
def town(tmp_path):
    town = Town(tmp_path / "ledger.sqlite")
    yield town
    town.ledger.close()


async def test_the_cap_halves_with_every_unsigned_session_and_doubles_with_every_signed_one_over_restarts(town):
    served = []
    for _ in range(6):
        served.append(await town.session(40, signs=False))
        town.ledger.close()
        town.restart()
    assert served == [16, 8, 4, 2, 1, 1]
    for expected in (1, 1, 2, 4, 8, 16):
        assert await town.session(20) == 20, "who signs is served"
        town.ledger.close()
        town.restart()
        cap = (await Dealt(town.contracts, town.dealings, CLIENT, SERVER).open()).theirs._account.cap
        assert max(1, cap // TOKEN) == expected


async def test_a_consumer_with_history_is_served_64_tokens_ahead_and_half_as_many_the_next_time(town):
    assert await town.session(300) == 300
    assert [await town.session(100, signs=False) for _ in range(3)] == [64, 32, 16]


@pytest.mark.parametrize(("num_signed", "most"), [(0, 16 + 8 + 4 + 2 + 36), (300, 75 + 32 + 16 + 8 + 4 + 2 + 34)])
async def test_many_sessions_at_the_same_time_get_no_more_ahead_than_as_many_one_after_the_other(
    town, num_signed, most
):
    if num_signed:
        await town.session(num_signed)
    sessions = [
        await Dealt(town.contracts, town.dealings, CLIENT, SERVER, signs=False).open(number.to_bytes(16, "big"))
        for number in range(40)
    ]
    served = 0
    for dealt in sessions:
        with contextlib.suppress(Refused):
            for _ in range(100):
                await dealt.step()
                served += 1
    assert served <= most, "those that are waited for in vain count as ended unsigned, for all that are open"
    for dealt in sessions:
        await dealt.theirs.close(is_ours=True)
    await town.contracts.drained()
    assert town.ledger.num_unsigned(SERVER.peer_id, CLIENT.peer_id) == 16, "as many as are counted"
    assert town.contracts.standing(CLIENT.peer_id).unsigned_ends == 0, "nothing is kept of who has no session"


async def test_long_prompts_that_are_signed_for_buy_a_sixteenth_of_what_decoded_tokens_do(town):
    dealt = await Dealt(town.contracts, town.dealings, CLIENT, SERVER).open()
    for _ in range(5):
        await dealt.step(200)
    await dealt.close()
    assert await town.session(100, signs=False) == 16, "1000 tokens of prompt are worth 62, which is no history"


async def test_a_client_whose_lost_session_stays_unsigned_is_served_in_another_one(town):
    lost = await Dealt(town.contracts, town.dealings, CLIENT, SERVER, signs=False).open(bytes([1]) * 16)
    for _ in range(16):
        await lost.step()
    found = await Dealt(town.contracts, town.dealings, CLIENT, SERVER).open(bytes([2]) * 16)
    for _ in range(100):
        await found.step()
    with pytest.raises(Refused) as refused:
        await lost.step()
    assert refused.value.code == "unsigned"


async def test_sessions_at_the_same_time_of_a_client_that_signs_all_go_on(town):
    sessions = [
        await Dealt(town.contracts, town.dealings, CLIENT, SERVER).open(bytes([number]) * 16) for number in range(4)
    ]
    for _ in range(100):
        for dealt in sessions:
            await dealt.step()
    for dealt in sessions:
        await dealt.close()
    assert town.ledger.history_of(SERVER.peer_id, CLIENT.peer_id) == {WorkKind.DECODE: 400}


async def test_sessions_in_which_nothing_is_served_mend_nothing(town):
    assert await town.session(40, signs=False) == 16
    for _ in range(5):
        assert await town.session(0) == 0
    assert await town.session(40, signs=False) == 8


async def test_a_session_that_the_server_ends_is_not_held_against_its_client(town):
    assert await town.session(3, signs=False, is_ours=True) == 3
    assert town.ledger.num_unsigned(SERVER.peer_id, CLIENT.peer_id) == 0
    (end,) = town.ledger.unsigned(SERVER.peer_id)
    assert (end.peer, end.amount) == (CLIENT.peer_id, 3), "the user is told all the same"


async def test_what_one_does_not_sign_is_not_held_against_another(town):
    await town.session(40, signs=False)
    assert town.ledger.num_unsigned(SERVER.peer_id, Identity.ephemeral().peer_id) == 0


async def test_a_session_at_rest_is_signed_for_without_another_step(town, monkeypatch):
    dealt = await Dealt(town.contracts, town.dealings, CLIENT, SERVER).open()
    await dealt.step(3)
    await dealt.theirs.check()
    assert not dealt.theirs._account.is_settled
    monkeypatch.setattr(contract, "_REST_S", 0.0)
    await dealt.theirs.check()
    assert dealt.theirs._account.is_settled


@pytest.mark.parametrize(
    ("skew_s", "words"), [(300.5, r"30[01] s behind mine"), (-299.5, r"(299|300) s ahead of mine")]
)
async def test_a_server_refuses_who_is_five_minutes_off_with_a_sentence_that_says_so(town, skew_s, words):
    town.contracts = contracts(SERVER, town.ledger, lambda: time.time() + skew_s)
    with pytest.raises(Refused, match=f"Your clock is {words}.*set it and try again") as refused:
        await town.session(1)
    assert refused.value.code == "clock"


async def test_a_server_whose_clock_is_set_back_goes_on_in_the_epoch_that_it_was_in(town):
    now_s = [80_000.5 * 2**20]
    town.contracts = contracts(SERVER, town.ledger, lambda: now_s[0])
    town.dealings = dealings(CLIENT, Ledger.open(None), lambda: now_s[0])
    now_s[0] = 1000.0 * 2**20 + 10
    monday = await Dealt(town.contracts, town.dealings, CLIENT, SERVER).open()
    lane = monday.theirs._lane
    epoch = lane.epoch
    await monday.theirs.close()
    now_s[0] -= 60
    await Dealt(town.contracts, town.dealings, CLIENT, SERVER).open()
    assert lane.epoch == epoch == 1000


async def test_who_never_signs_has_to_wait_longer_and_longer_and_is_let_in_again(town, monkeypatch):
    for _ in range(10):
        town.ledger.change_unsigned(SERVER.peer_id, CLIENT.peer_id, 1)
    with pytest.raises(Refused) as refused:
        await town.session(1)
    assert (refused.value.code, refused.value.retryable) == ("unsigned", True)
    assert 2 < refused.value.retry_after_s <= 4
    monkeypatch.setattr(town.contracts, "_clock", lambda: time.time() + 5)
    assert await town.session(1, signs=False) == 1
