"""Tensors cross the wire bit for bit, and without a copy where none is needed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.errors import LocalError
from node.model.tensors import CODEC_DTYPES, codec_of, from_payload, to_payload
from node.wire import ITEM_BYTES

CPU = torch.device("cpu")


def arrive(payload, shape, codec, dtype):
    return from_payload(payload, shape, codec, dtype=dtype, device=CPU)


def test_every_codec_of_the_wire_has_a_dtype_of_its_size():
    assert {codec: dtype.itemsize for codec, dtype in CODEC_DTYPES.items()} == ITEM_BYTES


@pytest.mark.parametrize("codec", CODEC_DTYPES)
@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5)), seed=st.integers(0, 2**16))
def test_a_tensor_of_any_bits_comes_back_bit_for_bit(codec, shape, seed):
    num_bytes = shape[0] * shape[1] * shape[2] * ITEM_BYTES[codec]
    bits = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    hidden = bits.view(CODEC_DTYPES[codec]).reshape(shape)
    payload = to_payload(hidden, codec)
    assert payload.nbytes == num_bytes
    assert payload.format == "B"
    back = arrive(bytes(payload), shape, codec, CODEC_DTYPES[codec])
    assert back.shape == shape
    assert torch.equal(back.contiguous().view(torch.uint8), hidden.view(torch.uint8))


@pytest.mark.parametrize("codec", CODEC_DTYPES)
def test_what_travels_is_little_endian_and_row_major(codec):
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]], dtype=CODEC_DTYPES[codec])
    one = {"float32": "0000803f", "float16": "003c", "bfloat16": "803f"}[codec]
    two = {"float32": "00000040", "float16": "0040", "bfloat16": "0040"}[codec]
    assert bytes(to_payload(hidden, codec)).hex().startswith(one + two)


def test_a_transposed_or_sliced_tensor_travels_in_its_logical_order():
    hidden = torch.arange(24.0).reshape(2, 4, 3)
    for view in (hidden.transpose(1, 2), hidden[:, 1:3], hidden[::2]):
        assert torch.equal(arrive(to_payload(view, "float32"), view.shape, "float32", torch.float32), view)


@pytest.mark.parametrize("codec", CODEC_DTYPES)
def test_a_tensor_that_fits_is_sent_without_a_copy(codec):
    hidden = torch.zeros(1, 2, 3, dtype=CODEC_DTYPES[codec])
    payload = to_payload(hidden, codec)
    hidden.fill_(1)
    assert bytes(payload) == bytes(to_payload(torch.ones(1, 2, 3), codec))


@pytest.mark.parametrize("codec", CODEC_DTYPES)
def test_a_writable_payload_becomes_a_tensor_without_a_copy(codec):
    payload = bytearray(6 * ITEM_BYTES[codec])
    hidden = arrive(memoryview(payload), (1, 2, 3), codec, CODEC_DTYPES[codec])
    payload[:] = to_payload(torch.ones(1, 2, 3), codec)
    assert torch.equal(hidden, torch.ones(1, 2, 3, dtype=CODEC_DTYPES[codec]))


def test_a_read_only_payload_is_copied_and_never_written_to():
    payload = bytes(24)
    hidden = arrive(payload, (1, 2, 3), "float32", torch.float32)
    hidden.fill_(1)
    assert payload == bytes(24)


@pytest.mark.parametrize("codec", CODEC_DTYPES)
@pytest.mark.parametrize("dtype", CODEC_DTYPES.values())
def test_codec_and_compute_dtype_may_differ_and_rounding_is_that_of_the_coarser(codec, dtype):
    hidden = torch.linspace(-3, 3, 12, dtype=dtype).reshape(1, 3, 4)
    back = arrive(to_payload(hidden, codec), (1, 3, 4), codec, dtype)
    assert back.dtype == dtype
    assert torch.equal(back, hidden.to(CODEC_DTYPES[codec]).to(dtype))


def test_a_tensor_that_wants_a_gradient_can_be_sent():
    assert to_payload(torch.ones(1, 1, 1, requires_grad=True), "float32").nbytes == 4


def test_the_codec_of_a_dtype_carries_it_without_loss():
    assert {codec_of(dtype): dtype for dtype in CODEC_DTYPES.values()} == CODEC_DTYPES
    with pytest.raises(LocalError, match="float64"):
        codec_of(torch.float64)
