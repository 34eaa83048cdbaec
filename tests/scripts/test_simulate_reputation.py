"""A small slice of the simulation: liars are found out, other rules are deceived, and demands can be missed."""

import json
from dataclasses import replace

import pytest
import simulate_reputation
from reputation_simulation.demands import missed, missed_under_load
from reputation_simulation.overload import RENAMING, RIDERS, Queues
from reputation_simulation.settings import Settings
from simulate_reputation import Run, simulate

SMALL = Settings(num_nodes=48, num_ranges=3, num_epochs=16, num_newcomers=3, newcomers_epoch=4)


def figures_of(attack, rule="aft", **changes):
    return simulate(Run("", "", attack, rule, replace(SMALL, **changes), seed=1))


def test_liars_are_found_out_and_honest_nodes_are_not():
    found = figures_of("always", num_epochs=24)
    assert found.bad_by_epoch[0] > 0.2
    assert found.bad_by_epoch[-1] == 0
    assert (found.recall, found.honest_flagged, found.inflation) == (1, 0, 0)


def test_where_all_are_alike_liars_go_on():
    found = figures_of("always", "random")
    assert found.bad == pytest.approx(0.3, abs=0.05)
    assert found.recall == 0


@pytest.mark.parametrize("rule", ["points", "eigentrust"])
def test_a_ring_that_signs_for_itself_takes_over_the_rules_that_count_what_is_signed(rule):
    theirs, ours = figures_of("sybil", rule), figures_of("sybil")
    assert theirs.inflation > 1.2
    assert theirs.bad > 0.1 > 0.01 > ours.bad_by_epoch[-1]


def test_beta_is_deceived_by_passes_that_liars_give_each_other():
    assert figures_of("sybil", "beta").bad > 5 * figures_of("sybil").bad_by_epoch[-1] + 0.01


def test_whoever_takes_new_names_delivers_nothing():
    found = figures_of("whitewash")
    assert found.bad_by_epoch[-1] == 0
    assert 0 < found.duplicates <= SMALL.shadow_rate + 0.005


def test_slanderers_lose_their_voice_and_nobody_else_anything():
    found = figures_of("slander")
    assert (found.silenced, found.honest_flagged) == (1, 0)


def test_bad_anchors_break_the_rule_when_they_are_the_majority_and_other_anchors_mend_it():
    minority, majority, replaced = (
        figures_of("slander", num_bad_anchors=number, new_anchors_epoch=epoch, juror_error=0)
        for number, epoch in ((2, None), (3, None), (3, 12))
    )
    assert (minority.honest_flagged, replaced.honest_flagged) == (0, 0)
    assert majority.honest_flagged > 0.5


def test_whom_slanderers_find_away_is_lost_unless_an_anchor_with_the_weights_denies_for_it():
    alone, defended = (figures_of("slander", away=0.2, num_defenders=number) for number in (0, 5))
    assert alone.honest_flagged > 0.2
    assert defended.honest_flagged < 0.2 * alone.honest_flagged


def test_where_anchors_alone_accuse_liars_are_found_too():
    found = figures_of("stealth", anchors_verify=True, canaries=24, false_positives=0)
    assert (found.recall, found.honest_flagged, found.bad_by_epoch[-1]) == (1, 0, 0)


def test_whoever_has_just_become_established_can_be_audited_more():
    few, many = (figures_of("partial", canaries=0, fresh_audit_rate=rate) for rate in (None, 0.2))
    assert many.bad_in_all < few.bad_in_all


def test_the_same_seed_gives_the_same_run():
    assert figures_of("mixed", num_epochs=8) == figures_of("mixed", num_epochs=8)


def test_under_load_contributors_are_served_first_and_who_gives_nothing_gets_what_is_left():
    alike = Queues(False, RIDERS, seed=0).run(4, counted=2)
    ours = Queues(True, RENAMING, seed=0).run(4, counted=2)
    assert alike["light contributors"] == pytest.approx(alike["free riders"], abs=0.05)
    assert list(missed_under_load(ours)) == []
    assert len(list(missed_under_load(alike))) == 2


def test_whatever_is_missed_is_said():
    good = figures_of("always", num_epochs=6)
    bad = replace(
        good, bad=0.02, honest_flagged=0.2, newcomers=0.1, silenced=0.5, inflation=2, bad_by_epoch=(0.5,) * 80
    )
    kept = replace(good, bad=0, honest_flagged=0, newcomers=1, silenced=1, inflation=1, bad_by_epoch=(0.0,) * 80)
    names = ("always", "slander", "collude", "sleeper")
    assert list(missed(dict.fromkeys(names, kept))) == []
    said = list(missed(dict.fromkeys(names, bad)))
    for part in ("outputs were bad", "honest were flagged", "newcomers got", "silenced", "the ring got", "found out"):
        assert any(part in sentence for sentence in said)


def test_the_command_prints_tables_writes_figures_and_fails_when_something_is_missed(capsys, tmp_path):
    path, plots = tmp_path / "figures.json", tmp_path / "plots"
    small = ["--quick", "--nodes", "40", "--epochs", "3", "--attacks", "always"]
    assert simulate_reputation.main([*small, "--json", str(path), "--plots", str(plots)]) == 1
    printed = capsys.readouterr()
    assert "missed: always" in printed.err
    assert "| ratio rule |" in printed.out
    assert json.loads(path.read_text())["figures"]["aft"]["always"]["bad"] > 0.05
    assert (plots / "aft.svg").read_text().count("<polyline") == 1


@pytest.mark.timeout(600)
def test_the_quick_run_holds_every_demand_of_the_project(capsys):
    assert simulate_reputation.main(["--quick"]) == 0, capsys.readouterr().err
