"""Ids and logits come back from their bytes as they were, whatever the bytes are."""

import struct

import torch
from hypothesis import given
from hypothesis import strategies as st

from node.model.tokens import ids_from_payload, ids_to_payload, logits_from_payload, logits_to_payload
from node.wire import IDS, LOGITS, payload_bytes

ids_lists = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20)


@given(ids_lists)
def test_ids_are_little_endian_integers_of_four_bytes(ids):
    payload = ids_to_payload(torch.tensor([ids]))
    assert bytes(payload) == struct.pack(f"<{len(ids)}I", *ids)
    assert len(payload) == payload_bytes(IDS, (1, len(ids), 1))
    assert ids_from_payload(payload, (1, len(ids))).tolist() == [ids]


def test_ids_as_large_as_their_bytes_allow_are_read_as_what_they_are():
    assert ids_from_payload(struct.pack("<2I", 2**32 - 1, 2**31), (2, 1)).tolist() == [[2**32 - 1], [2**31]]


@given(ids_lists, st.floats(width=32))
def test_logits_stand_behind_their_ids(ids, value):
    logits = torch.full((1, 1, len(ids)), value)
    payload = logits_to_payload(torch.tensor([[ids]]), logits)
    assert bytes(payload) == struct.pack(f"<{len(ids)}I{len(ids)}f", *ids, *[value] * len(ids))
    assert len(payload) == payload_bytes(LOGITS, (1, 1, len(ids)))
    read_ids, read = logits_from_payload(payload, (1, 1, len(ids)))
    assert read_ids.flatten().tolist() == ids
    torch.testing.assert_close(read, logits, atol=0, rtol=0, equal_nan=True)
