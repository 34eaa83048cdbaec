"""Trials of the simulation against the rule that nodes follow: at every unit of every trial both say the same."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest
from reputation_simulation.attacks import ALWAYS, SLANDER, WHITEWASH
from reputation_simulation.book import Book, Node
from reputation_simulation.courts import Claim, Courts, Session
from reputation_simulation.settings import Settings
from reputation_simulation.trials import Trial, course, standing

from dht.judgement.docket import open_cases
from dht.judgement.judge import judge
from dht.judgement.outcomes import State
from dht.judgement.timeline import MAX_UNITS
from dht.judgement.votes import Tally
from dht.verdict import Opinion
from tests.dht.judgement.town import ACCUSER, ANCHORS, ONE, PEERS, UNIT_S, claim_of, court_of, play

CHOICES = (Opinion.UPHELD, Opinion.REFUTED, Opinion.INCONCLUSIVE, None)


def real(chance):
    """A trial by the real rule in which people do what is drawn; its states by unit, and what was done in it."""
    num_holders = chance.choice((0, 2, 8, 20, 30))
    is_denied, appeals = chance.random() < 0.6, chance.random() < 0.7
    is_heeded, last_level = chance.random() < 0.7, chance.choice((2, 3))
    weights = dict.fromkeys(PEERS[:30], ONE) | {ACCUSER: ONE if is_heeded else ONE // 8}
    leanings = [[chance.choice((1, 4, 16)) for _ in CHOICES] for _ in range(3)]

    def says(_, __, level):
        return chance.choices(CHOICES, leanings[level - 1])[0]

    court = court_of(PEERS[:num_holders], weights, ANCHORS)
    town = play([claim_of()], says, court=court, denies=is_denied, appeals=appeals)
    contests = [each for each in town.contests if each.level <= last_level]

    def at(units):
        now_s = town.claims[0].t + units * UNIT_S
        known = ([each for each in signed if each.t <= now_s] for signed in (contests, town.verdicts))
        return judge(open_cases(town.claims, *known), court, now_s).rulings[0]

    rulings = [at(units) for units in range(MAX_UNITS + 2)]
    tallies = dict(enumerate(rulings[-1].tallies, 1))
    return rulings, Trial(
        num_holders, is_denied, is_heeded,
        appeals=lambda level, _: appeals and level <= last_level, vote=lambda level, _: tallies[level],
    )  # fmt: skip


def test_every_unit_of_every_trial_says_what_the_rule_says():
    chance, seen = random.Random(0), Counter()
    for _ in range(150):
        rulings, trial = real(chance)
        steps = course(trial)
        for units, ruling in enumerate(rulings):
            step = standing(steps, units)
            assert (step.state, step.is_final) == (ruling.state, ruling.is_final), (units, trial, rulings[-1])
        seen[rulings[-1].state, steps[-1].level] += 1
    assert {state for state, _ in seen} == {State.UPHELD, State.REJECTED, State.UNRESOLVED, State.LOCAL}
    assert {level for _, level in seen} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("second", "last", "state"),
    [
        (Tally(15, 0, 0, 15), Tally(5, 0, 0, 5), State.UPHELD),  # Level 1 stands where nobody can tell.
        (Tally(15, 0, 15, 0), Tally(5, 0, 0, 5), State.REJECTED),  # A clear verdict stands that a bond was staked on.
        (Tally(15, 6, 8, 0), Tally(5, 0, 0, 5), State.UNRESOLVED),  # Level 2 has found otherwise, if not clearly.
        (Tally(15, 0, 0, 15), Tally(5, 1, 4, 0), State.REJECTED),
    ],
)
def test_what_level_1_has_found_stands_unless_somebody_above_it_finds_otherwise(second, last, state):
    tallies = {1: Tally(7, 7, 0, 0), 2: second, 3: last}
    steps = course(Trial(20, True, True, lambda *_: True, lambda level, _: tallies[level]))
    assert (steps[-1].state, steps[-1].is_final) == (state, True)


class Scores:
    """As many people as there are, all of them credible."""

    def __init__(self, anchors=()):
        self.anchors = anchors

    def standing(self, _):
        return SimpleNamespace(credibility=ONE)


def held(claims, *, anchors=(), num_holders=12, **changes):
    """Courts that have judged claims of one accuser against one peer, in an epoch before which all have worked."""
    claim = claims[0]
    nodes = [claim.accuser, claim.accused, *(Node(f"holder {number}", 0, 0) for number in range(num_holders - 1))]
    nodes += [Node(name, 1, 0, is_anchor=True) for name in anchors]
    book = Book()
    for node in nodes:
        book.work(claim.accuser, node)
    book.end_epoch()
    courts = Courts(Settings(juror_error=0, **changes), random.Random(0))
    courts.judge(claims, book, nodes, Scores(anchors))
    for _ in range(3):
        book.end_epoch()
        courts.judge([], book, nodes, Scores(anchors))
    return courts, book


def node(name, behaviour=None):
    return Node(name, 0, 0, behaviour)


def test_who_is_silent_is_convicted_by_default_and_costs_nobody_any_work():
    courts, book = held([Claim(node("accuser"), node("accused", WHITEWASH), is_true=True)])
    assert [each.peer for each in book.convictions] == ["accused"]
    assert courts.num_votes == 0


def test_an_honest_node_that_is_away_is_convicted_by_a_slanderer_unless_an_anchor_with_the_weights_denies():
    claim = Claim(node("accuser", SLANDER), node("accused"), is_true=False)
    _, alone = held([claim], anchors=("anchor",), num_defenders=0, away=1.0)
    _, defended = held([claim], anchors=("anchor",), num_defenders=1)
    assert [each.peer for each in alone.convictions] == ["accused"]
    assert not defended.convictions
    assert [each.accuser for each in defended.rejections] == ["accuser"]


def test_where_fewer_than_three_hold_the_blocks_nothing_follows():
    _, book = held([Claim(node("accuser"), node("accused", ALWAYS), is_true=True)], num_holders=1)
    assert not book.convictions
    assert not book.rejections


def test_guilt_that_level_1_has_found_counts_while_an_appeal_runs_and_innocence_does_not():
    steps = course(Trial(20, True, True, lambda *_: True, lambda level, _: Tally(15, 15 * (level == 1), 0, 0)))
    assert [standing(steps, units).state for units in (7, 8, 15)] == [State.PENDING, State.UPHELD, State.UPHELD]
    steps = course(Trial(20, True, True, lambda *_: False, lambda *_: Tally(7, 0, 7, 0)))
    assert [standing(steps, units).state for units in (8, 9, 10)] == [State.PENDING, State.PENDING, State.REJECTED]


def test_a_bond_serves_for_one_case_at_a_time():
    claim = Claim(node("accuser"), node("accused", ALWAYS), is_true=True)
    courts, book = held([claim, claim], anchors=("a", "b", "c"))
    assert [each.peer for each in book.convictions] == ["accused"] * 2
    assert courts.num_anchor_appeals == 1, "the other one ends where its bond is wanting"


def test_levels_are_drawn_of_holders_against_a_judgement_by_default_and_of_all_else():
    nodes = [Node(f"node {number:02}", number % 2, 0) for number in range(60)]
    claim = Claim(nodes[0], nodes[1], is_true=True)
    session = Session(nodes, {each.name for each in nodes}, Scores())
    draw = {
        (level, by_default): session.draw(claim, level, by_default, random.Random(1))
        for level, by_default in ((1, False), (2, False), (2, True))
    }
    assert [len(members) for members in draw.values()] == [7, 15, 15]
    assert {each.range for each in draw[1, False]} == {each.range for each in draw[2, True]} == {1}
    assert {each.range for each in draw[2, False]} == {0, 1}
    assert not any(party in members for party in (claim.accuser, claim.accused) for members in draw.values())
