"""What may be written for --since."""

import pytest

from node.run.since import in_words, parse_since

NOW = 1_795_000_000  # 2026-11-18 11:06:40 UTC


@pytest.mark.parametrize(
    ("text", "since_s"),
    [
        ("7 days", NOW - 7 * 86400),
        ("1 day", NOW - 86400),
        ("2 Weeks", NOW - 14 * 86400),
        (" 3hours ", NOW - 3 * 3600),
        ("99999 weeks", 0),
        ("2026-11-18", NOW - (11 * 3600 + 6 * 60 + 40)),
        ("1970-01-01", 0),
        ("1903-01-01", 0),
    ],
)
def test_dates_and_spans_are_understood(text, since_s):
    assert parse_since(text, NOW) == since_s


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "7", "days", "-7 days", "18.11.2026", "1e5 days"])
def test_anything_else_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="write for example 2026-11-01, or 7 days"):
        parse_since(text, NOW)


def test_a_day_that_has_not_begun_is_refused():
    with pytest.raises(ValueError, match="lies ahead"):
        parse_since("2026-11-19", NOW)


def test_times_are_written_in_utc_and_impossible_ones_as_numbers():
    assert in_words(NOW) == "2026-11-18 11:06:40"
    assert in_words(2**40) == str(2**40)
