"""A server knows of its clients what its scores say, and nothing before there are any."""

from types import SimpleNamespace

from dht.ident import Affiliation
from dht.reputation import DEFAULT_SCORE_RULES
from dht.rules import DEFAULT_RULES
from dht.standing.board import Terms, standings_of
from dht.standing.precedence import NEW_LEVEL, NUM_LEVELS
from dht.standing.proofs import Proofs
from dht.standing.workbook import Workbook
from node.run.client_levels import ClientLevels
from tests.node.run.test_score_words import ANCHOR, EPOCH, GOOD, OTHER, PEER, work


def standings(*receipts, proofs=None):
    terms = Terms((ANCHOR.peer_id,), DEFAULT_RULES, DEFAULT_SCORE_RULES)
    return standings_of(Workbook(receipts), proofs or Proofs(), terms, EPOCH, DEFAULT_RULES.start_of(EPOCH + 1))


def test_levels_follow_the_board_and_a_new_state_of_it_replaces_them():
    board = SimpleNamespace(standings=None)
    levels = ClientLevels(board)
    assert levels.level_of(GOOD.peer_id) == NEW_LEVEL, "nothing is known"
    board.standings = standings(work(GOOD, ANCHOR, 40), work(OTHER, PEER, 40))
    assert levels.level_of(GOOD.peer_id) == NUM_LEVELS - 1
    assert levels.level_of(PEER.peer_id) == 0, "it has taken forty units and given none"
    assert levels.level_of("somebody") == NEW_LEVEL
    board.standings = standings(work(OTHER, ANCHOR, 40))
    assert levels.level_of(GOOD.peer_id) == NEW_LEVEL, "what it gave is not in the window any more"


def test_a_donors_client_is_served_by_what_its_server_gave_where_both_have_signed_that_they_are_its():
    receipts = work(GOOD, ANCHOR, 40), work(OTHER, PEER, 2)
    levels = ClientLevels(SimpleNamespace(standings=standings(*receipts)))
    assert levels.level_of(PEER.peer_id) < NEW_LEVEL
    linked = Proofs(affiliations=(Affiliation(GOOD.peer_id, PEER.peer_id, EPOCH),))
    levels = ClientLevels(SimpleNamespace(standings=standings(*receipts, proofs=linked)))
    assert levels.level_of(PEER.peer_id) == levels.level_of(GOOD.peer_id) == NUM_LEVELS - 1
