import pytest

from node.errors import UserError
from node.serve.hours import Hours


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("08:00-17:30", [480, 1049], [479, 1050, 0]),
        ("22:00-07:00", [1320, 1439, 0, 419], [420, 1319]),
        ("0:00-24:00", [0, 700, 1439], []),
        ("22:00-24:00", [1320, 1439], [0, 1319]),
        ("24:00-01:00", [0, 59], [60, 1439]),
        ("08:00-09:00, 12:00-13:00", [480, 720], [540, 780]),
    ],
)
def test_a_minute_is_inside_or_outside(text, inside, outside):
    hours = Hours.parse(text)
    assert [hours.contain(minute) for minute in inside] == [True] * len(inside)
    assert [hours.contain(minute) for minute in outside] == [False] * len(outside)


@pytest.mark.parametrize(
    "text", ["", "8-17", "08:00", "08:60-09:00", "25:00-26:00", "08:00-08:00", "08:00-09:00,", "a"]
)
def test_what_is_no_range_is_refused_with_the_mend(text):
    with pytest.raises(UserError, match="22:00-07:00"):
        Hours.parse(text)


def test_hours_are_written_as_they_are_read():
    assert str(Hours.parse("22:00-07:00,12:00-13:00")) == "22:00-07:00, 12:00-13:00"
