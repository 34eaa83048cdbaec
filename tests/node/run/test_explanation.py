"""An explanation is one event, and a table that no peer's words can break out of."""

import io
import json

from node.client.explain import Candidate, Explanation
from node.client.offers import Objective
from node.run.events import Reporter
from node.run.explanation import as_fields, as_table, tell_explanation

TAKEN = Candidate("12D3taken", 0, 8, 1_500, 250, 4_000, (0, 8), 18_250, "")
OTHER = Candidate("12D3other", 4, 8, 20, 0, None, None, None, "failed 3 s ago: \x1b[2J[red]gone[/]")
EXPLANATION = Explanation(Objective.WIDEST, 18_250, 12_000, (TAKEN, OTHER))


def test_the_event_has_every_server_with_times_in_ms():
    fields = as_fields(EXPLANATION)
    assert (fields["policy"], fields["token_ms"]) == ("widest", 18.25)
    taken, other = fields["candidates"]
    assert taken == {
        "peer_id": "12D3taken", "blocks": "0:8", "block_ms": 1.5, "queue_ms": 0.25, "round_trip_ms": 4.0,
        "taken": "0:8", "token_ms": 18.25, "reason": "",
    }  # fmt: skip
    assert (other["taken"], other["token_ms"], other["round_trip_ms"]) == (None, None, None)


def test_the_table_has_a_line_for_each_server_and_says_what_is_expected():
    table = as_table(EXPLANATION, 200)
    for peer, words in (("12D3taken", ["0:8", "1.50", "0.25", "4.00", "18.25"]), ("12D3other", ["4:8", "0.02", "-"])):
        (line,) = [line for line in table.splitlines() if peer in line]
        assert all(word in line for word in words)
    assert "Expected: 18.25 ms" in table
    assert "12.00 ms" in table.splitlines()[-1]


def test_words_of_a_peer_are_shown_as_they_are_and_command_no_terminal():
    table = as_table(EXPLANATION, 200)
    assert "\x1b" not in table
    assert "[2J[red]gone[/]" in table


def test_the_table_keeps_to_its_width():
    assert max(map(len, as_table(EXPLANATION, 100).splitlines())) <= 100


def test_people_get_the_table_and_scripts_the_event():
    out, err = io.StringIO(), io.StringIO()
    tell_explanation(Reporter(events_json=True, out=out, err=err), EXPLANATION)
    assert json.loads(out.getvalue()) == {"event": "explain", **as_fields(EXPLANATION)}
    assert "12D3taken" in err.getvalue()
    out, err = io.StringIO(), io.StringIO()
    tell_explanation(Reporter(events_json=False, out=out, err=err), EXPLANATION)
    assert out.getvalue() == ""
