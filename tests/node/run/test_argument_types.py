"""What a user may write as an argument."""

import argparse
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.run import argument_types

WHOLE = {"count": (1, 10**9), "seconds": (0, 10**6), "epoch": (1, 2**24), "bits": (0, 40), "threads": (1, 1024)}


@pytest.mark.parametrize("kind", [*WHOLE, "seed"])
def test_whole_numbers_are_taken_within_their_bounds_alone(kind: str):
    least, most = WHOLE.get(kind, (0, 2**64 - 1))
    read = getattr(argument_types, kind)
    assert (read(str(least)), read(str(most))) == (least, most)
    for text in (str(least - 1), str(most + 1), "", " 1", "1.0", "1e3", "one", "9" * 5000, "\u00b2"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"from {least} to {most}"):
            read(text)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("800MB", 800 * 10**6), ("6GiB", 6 * 2**30), ("1.5k", 1500), ("0", 0), (" 12 kib ", 12288), ("7b", 7)],
)
def test_a_size_has_a_unit_of_tens_or_of_twos_or_none(text: str, num_bytes: int):
    assert argument_types.size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "lots", "-1GiB", "1TB", "1.", ".5k", "1 0", "9" * 19, "nan", "1e3"])
def test_what_is_no_size_is_told_with_examples(text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="6GiB or 800MB"):
        argument_types.size(text)


def test_less_than_a_kilobyte_a_second_is_a_pause():
    assert argument_types.bandwidth("1kB") == 1000
    with pytest.raises(argparse.ArgumentTypeError, match="efedllm pause"):
        argument_types.bandwidth("999")


@pytest.mark.parametrize("text", ["0", "-1", "1001", "nan", "inf", "", "warm"])
def test_a_temperature_is_a_number_above_0(text: str):
    assert argument_types.temperature("0.7") == 0.7
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a number from 0\.001 to 1000"):
        argument_types.temperature(text)


@pytest.mark.parametrize("text", ["0", "0.0", "-0.1", "1.1", "nan", "half"])
def test_a_share_is_above_0_and_at_most_1(text: str):
    assert (argument_types.share("1"), argument_types.share("0.25")) == (1, 0.25)
    with pytest.raises(argparse.ArgumentTypeError):
        argument_types.share(text)


def test_bytes_that_are_no_utf_8_are_refused():
    assert argument_types.text("\u00e9") == "\u00e9"
    with pytest.raises(argparse.ArgumentTypeError, match="is not UTF-8"):
        argument_types.text("a\udcff")


@given(st.text(max_size=30))
def test_whatever_is_written_is_read_or_refused(text: str):
    for kind in (*WHOLE, "seed", "temperature", "share", "bandwidth", "size", "text"):
        with contextlib.suppress(argparse.ArgumentTypeError):
            assert getattr(argument_types, kind)(text) is not None
