"""What many members' answers come to."""

import random

from hypothesis import given
from hypothesis import strategies as st

from dht.hardening.findings import MIN_FORESTALLED, Findings

records = st.lists(
    st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.sampled_from([b"one", b"two"]), st.integers(1, 4).map(float)),
    max_size=30,
)


@given(records, st.integers(0, 99))
def test_the_newest_of_each_subkey_stays_whatever_the_order(taken, seed):
    shuffled = random.Random(seed).sample(taken, len(taken))
    expected = {subkey: max(each[2] for each in taken if each[0] == subkey) for subkey, _, _ in taken}
    for order in (taken, shuffled):
        findings = Findings(lambda one, other: None, 100)
        for record in order:
            findings.take(record)
        assert {subkey: expires_s for subkey, _, expires_s in findings.records()} == expected
        assert all(record in order for record in findings.records())


def test_who_contradicts_what_stands_is_told_and_does_not_replace_it():
    heard = []
    findings = Findings(lambda one, other: heard.append((one, other)), 100)
    for record in [(b"a", b"one", 5.0), (b"a", b"one", 5.0), (b"a", b"two", 5.0), (b"a", b"three", 4.0)]:
        findings.take(record)
    assert heard == [(b"one", b"two")]
    assert findings.records() == [(b"a", b"one", 5.0)]
    assert findings.knows((b"a", b"one", 5.0))
    assert not findings.knows((b"a", b"two", 5.0))


def test_no_more_subkeys_are_kept_than_may_be():
    findings = Findings(lambda one, other: None, 3)
    for number in range(10):
        findings.take((bytes([number]), b"value", 1.0))
    assert len(findings.records()) == 3


async def test_few_records_are_not_sent_elsewhere_nor_any_that_is_too_long():
    sent = []

    async def forestall(envelopes):
        sent.extend(envelopes)

    findings = Findings(lambda one, other: None, 100, forestall)
    few = [(bytes([number]), b"value", 1.0) for number in range(MIN_FORESTALLED - 1)]
    await findings.prepare(few)
    assert sent == []
    await findings.prepare([*few, (b"x", bytes(5000), 1.0)])
    assert sent == [b"value"] * len(few)
