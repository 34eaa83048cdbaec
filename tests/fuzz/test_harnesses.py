"""No input to the codec, the validator, the DHT's calls, agreements or sessions makes a node raise."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.validation import RecordValidator
from tests.fuzz.harnesses import HARNESSES
from tests.fuzz.peers import everybody
from tests.fuzz.records import envelopes

CORPUS = Path(__file__).parent / "corpus"
MAX_CORPUS_BYTES = 200_000
SLOW = {"served": 60, "calls": 60, "dealings": 60, "streams": 100, "stages": 100}
"""Examples of those that take milliseconds each; of the others 200."""


@pytest.mark.parametrize("name", HARNESSES)
def test_any_bytes_do_no_harm(name):
    @settings(max_examples=SLOW.get(name, 200), database=None)
    @given(st.binary(max_size=400))
    def any_bytes(data):
        HARNESSES[name](data)

    any_bytes()


@pytest.mark.parametrize("name", HARNESSES)
def test_what_a_fuzzer_has_found_to_reach_far_does_no_harm(name):
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        HARNESSES[name](path.read_bytes())


def test_the_corpus_is_small():
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) <= MAX_CORPUS_BYTES


def test_fuzzed_records_come_past_the_signature_check(monkeypatch):
    verdicts = []
    why_not = RecordValidator.why_not

    def noting(*arguments):
        verdicts.append(why_not(*arguments))
        return verdicts[-1]

    monkeypatch.setattr(RecordValidator, "why_not", noting)
    chance = Random(1)
    for _ in range(1500):
        envelopes(chance.randbytes(100))
    assert {None, "signature", "malformed", "key", "expiry", "owner", "expired", "from the future"} <= set(verdicts)
    assert verdicts.count(None) > 100


def test_fuzzed_peers_open_sessions_run_steps_and_sign():
    chance = Random(1)
    met = [everybody(chance.randbytes(300)) for _ in range(60)]
    assert sum(peers.accepted for peers in met) > 20
    assert max(peers.computed for peers in met) > 3
    assert sum(peers.signed for peers in met) > 3
