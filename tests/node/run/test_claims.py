"""Claims as people and programs read them."""

import json

from node.run.claims import as_lines, as_object
from tests.dht.judgement.town import ACCUSED, ACCUSER, DOWN, UNIT_S, UP, T, claim_of, play


def test_open_claims_come_first_and_say_until_when():
    town = play([claim_of(), claim_of(lane=8, number=1, t=T + 12 * UNIT_S)], lambda *_: DOWN, appeals=False)
    lines = as_lines(town.outcomes(T + 13 * UNIT_S).rulings, T + 13 * UNIT_S)
    assert lines[0] == "Open: 1"
    assert lines[1].split() == ["pending", ACCUSER, "accuses", ACCUSED]
    assert lines[2].endswith(f"It is settled in {23 * UNIT_S // 60} min at the latest.")
    assert lines[3] == "Settled: 1"
    assert lines[4].split()[0] == "rejected"
    assert "found the work false" in lines[5]


def test_where_nobody_has_claimed_anything_that_is_said():
    assert as_lines((), 0) == ["Nobody has claimed anything."]


def test_a_program_reads_all_of_a_ruling():
    (ruling,) = play([claim_of()], lambda *_: UP, denies=False, appeals=False).outcomes().rulings
    read = json.loads(json.dumps(as_object(ruling)))
    assert (read["state"], read["is_final"], read["level"]) == ("upheld", True, 0)
    assert read["why"] == "Nobody denied it in time."
    assert bytes.fromhex(read["claim"]) == claim_of().hash
