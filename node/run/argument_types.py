"""Read the arguments of the command line: text in, a number or text out; what is wrong with it in a sentence.

It does not know which option takes which. Pure.
"""

from __future__ import annotations

import argparse
import re

_LEAST_BANDWIDTH = 1000
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def text(given: str) -> str:
    """Refuse what Python could not decode; it carries such bytes on as lone surrogates."""
    try:
        given.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{given!r} is not UTF-8 text") from None
    return given


def peers(given: str) -> tuple[str, ...]:
    """Read peer ids with commas between them, each once."""
    from dht.identity import peer_id_to_bytes

    listed = tuple(dict.fromkeys(each.strip() for each in given.split(",") if each.strip()))
    for peer in listed:
        try:
            peer_id_to_bytes(peer)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{peer[:80]!r} is no peer id") from None
    if not listed:
        raise argparse.ArgumentTypeError("no peer id is named")
    return listed


def _whole(text: str, least: int, most: int) -> int:
    value = int(text) if text.isdecimal() and len(text) <= len(str(most)) else -1
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return value


def count(text: str) -> int:
    """Read a number of things, at least one."""
    return _whole(text, 1, 10**9)


def seconds(text: str) -> int:
    """Read a number of seconds, or none."""
    return _whole(text, 0, 10**6)


def epoch(text: str) -> int:
    """Read the length of an epoch, seconds."""
    return _whole(text, 1, 2**24)


def bits(text: str) -> int:
    """Read how many bits a proof of work has."""
    return _whole(text, 0, 40)


def threads(text: str) -> int:
    """Read a number of threads."""
    return _whole(text, 1, 1024)


def seed(text: str) -> int:
    """Read a seed of 64 bits."""
    return _whole(text, 0, 2**64 - 1)


def _number(text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least:g} to {most:g}")
    return value


def temperature(text: str) -> float:
    """Read a temperature of sampling."""
    return _number(text, 0.001, 1000)


def share(text: str) -> float:
    """Read a share, above 0 and at most 1."""
    value = _number(text, 0, 1)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


def portion(text: str) -> float:
    """Read a share from 0 to 1."""
    return _number(text, 0, 1)


def bandwidth(text: str) -> int:
    """Read how many bytes may be moved in a second, such as "2MB"."""
    if (num_bytes := size(text)) < _LEAST_BANDWIDTH:
        raise argparse.ArgumentTypeError(f"{text!r} is less than 1kB; to give nothing for a while, `efedllm pause`")
    return num_bytes


def size(text: str) -> int:
    """Read a number of bytes, such as "6GiB" or "800MB"."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*([kmg]i?|)b?", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write for example 6GiB or 800MB")
    return int(float(match[1]) * _UNITS[match[2]])
