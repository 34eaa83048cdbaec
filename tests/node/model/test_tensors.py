"""Tensors cross the wire bit for bit, or within half a scale, and without a copy where none is needed."""

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.errors import LocalError
from node.model.tensors import BLOCK, CODEC_DTYPES, codec_of, from_payload, to_payload
from node.wire import CODECS, INT8_BLOCK, ITEM_BYTES, payload_bytes

CPU = torch.device("cpu")
FLOAT16_NUMBERS = numpy.arange(1, 0x7C00, dtype=numpy.uint16).view(numpy.float16)
"""Every positive finite float16, ascending."""
LARGEST_SCALE = 65504.0


def arrive(payload, shape, codec, dtype):
    return from_payload(payload, shape, codec, dtype=dtype, device=CPU)


def test_every_codec_of_the_wire_has_a_dtype_of_its_size():
    assert {codec: dtype.itemsize for codec, dtype in CODEC_DTYPES.items()} == ITEM_BYTES
    assert {*CODEC_DTYPES, "int8"} == set(CODECS)
    assert BLOCK == INT8_BLOCK


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


# -------------------------------------------------------------------------------------------------------------- int8

shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 5, 63, 64, 65, 128, 200, 256]))


def parts_of(payload, shape):
    """Scales ``[rows, tokens, blocks]`` and values ``[rows, tokens, hidden]``, read as docs/protocol.md says."""
    rows, tokens, hidden_size = shape
    num_blocks = -(-hidden_size // 64)
    end = 2 * rows * tokens * num_blocks
    scales = numpy.frombuffer(payload[:end], "<f2").reshape(rows, tokens, num_blocks)
    return scales, numpy.frombuffer(payload[end:], numpy.int8).reshape(shape)


def decoded_by_the_book(payload, shape):
    scales, values = parts_of(payload, shape)
    element_scales = numpy.repeat(scales.astype(numpy.float32), 64, axis=-1)[..., : shape[-1]]
    return values * element_scales, element_scales


def noise(shape, seed, exponent):
    """Numbers whose blocks have magnitudes of their own, around ``2 ** exponent``."""
    generator = torch.Generator().manual_seed(seed)
    magnitudes = 2.0 ** (exponent + torch.randint(-6, 7, shape, generator=generator))
    return torch.randn(shape, generator=generator) * magnitudes


@given(shape=shapes, seed=st.integers(0, 2**16), exponent=st.integers(-40, 16))
def test_every_element_in_int8_comes_back_within_half_the_scale_of_its_block(shape, seed, exponent):
    hidden = noise(shape, seed, exponent)
    payload = to_payload(hidden, "int8")
    assert payload.nbytes == payload_bytes("int8", shape)
    back = arrive(bytes(payload), shape, "int8", torch.float32).numpy()
    expected, scales = decoded_by_the_book(bytes(payload), shape)
    assert numpy.array_equal(back, expected)
    assert (numpy.abs(back - hidden.numpy()) <= scales * (0.5 + 2**-16)).all()  # float32 rounds the quotient


@given(shape=shapes, seed=st.integers(0, 2**16), exponent=st.integers(-40, 16))
def test_a_scale_in_int8_is_the_smallest_float16_that_clips_nothing(shape, seed, exponent):
    hidden = noise(shape, seed, exponent)
    scales, values = parts_of(bytes(to_payload(hidden, "int8")), shape)
    for block in range(scales.shape[-1]):
        largest = numpy.abs(hidden.numpy()[..., 64 * block : 64 * (block + 1)]).max(axis=-1)
        exact = numpy.float32(largest) / numpy.float32(127)
        index = numpy.searchsorted(FLOAT16_NUMBERS.astype(numpy.float32), exact)
        assert numpy.array_equal(scales[..., block], FLOAT16_NUMBERS[index])
    assert values.min() >= -127


@pytest.mark.parametrize("hidden_size", [64, 100])
def test_zeros_travel_in_int8_as_zeros_beside_blocks_that_are_none(hidden_size):
    hidden = torch.zeros(2, 3, hidden_size)
    hidden[0, 1, 70 % hidden_size :] = 5.0
    back = arrive(to_payload(hidden, "int8"), hidden.shape, "int8", torch.float32)
    assert torch.equal(back == 0, hidden == 0)
    torch.testing.assert_close(back, hidden, atol=0, rtol=2**-10)


def test_what_is_no_number_or_beyond_every_scale_travels_in_int8_as_zero_or_the_largest():
    hidden = torch.linspace(-1, 1, 256).reshape(1, 2, 128)
    odd = hidden.clone()
    odd[0, 0, :5] = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38, -3e38])
    largest = 127 * LARGEST_SCALE
    back = arrive(to_payload(odd, "int8"), odd.shape, "int8", torch.float32)
    assert back[0, 0, :5].tolist() == [0.0, largest, -largest, largest, -largest]
    assert torch.equal(
        back[0, 0, 64:], arrive(to_payload(hidden, "int8"), hidden.shape, "int8", torch.float32)[0, 0, 64:]
    )
    assert torch.equal(back[0, 1], arrive(to_payload(hidden, "int8"), hidden.shape, "int8", torch.float32)[0, 1])


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_a_number_beside_one_that_is_none_keeps_its_precision_where_a_scale_allows(odd):
    hidden = torch.linspace(-1, 1, 64).reshape(1, 1, 64)
    hidden[0, 0, 7] = odd
    back = arrive(to_payload(hidden, "int8"), hidden.shape, "int8", torch.float32)
    if odd != odd:
        hidden[0, 0, 7] = 0
        torch.testing.assert_close(back, hidden, atol=1 / 127 / 2 * 1.001, rtol=0)
    assert back.isfinite().all()


@pytest.mark.parametrize("dtype", CODEC_DTYPES.values())
@given(shape=shapes, data=st.data())
def test_whatever_bytes_a_peer_sends_in_int8_what_arrives_is_finite(dtype, shape, data):
    num_bytes = payload_bytes("int8", shape)
    seed = data.draw(st.integers(0, 2**16))
    payload = numpy.random.default_rng(seed).integers(0, 256, num_bytes, numpy.uint8)
    odd = data.draw(st.sampled_from([0x7C00, 0xFC00, 0x7E00, 0xFFFF, 0x7BFF, 0xFBFF, 0x0001, 0x8000]))
    payload[: num_bytes - shape[0] * shape[1] * shape[2]].view("<u2")[::2] = odd
    back = arrive(bytes(payload), shape, "int8", dtype)
    assert (back.dtype, back.shape) == (dtype, shape)
    assert back.isfinite().all()


@pytest.mark.parametrize("dtype", CODEC_DTYPES.values())
def test_the_largest_numbers_of_a_dtype_come_back_finite_and_close_in_int8(dtype):
    largest = min(torch.finfo(dtype).max, 127 * LARGEST_SCALE)
    hidden = torch.full((1, 1, 64), largest, dtype=dtype)
    back = arrive(to_payload(hidden, "int8"), hidden.shape, "int8", dtype)
    torch.testing.assert_close(back, hidden, atol=0, rtol=2**-8)


def test_scales_stand_before_values_in_int8_and_both_are_little_endian_and_row_major():
    hidden = torch.zeros(1, 2, 65)
    hidden[0, 0, 0], hidden[0, 0, 64], hidden[0, 1, 1] = 127.0, -254.0, 63.5
    scales = "003c004000380100"  # 1, 2, 0.5 and, for zeros, 2^-24
    values = "7f" + "00" * 63 + "81" + "00" + "7f" + "00" * 63
    assert bytes(to_payload(hidden, "int8")).hex() == scales + values


def test_a_transposed_or_sliced_tensor_travels_in_its_logical_order_in_int8():
    hidden = noise((3, 64, 128), 0, 0)
    for view in (hidden.transpose(1, 2), hidden[:, 1:3], hidden[::2], hidden[..., 5:70]):
        assert bytes(to_payload(view, "int8")) == bytes(to_payload(view.contiguous(), "int8"))


def test_writing_int8_leaves_the_tensor_as_it_was():
    hidden = noise((1, 2, 128), 0, 0)
    before = hidden.clone()
    to_payload(hidden, "int8")
    assert torch.equal(hidden, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("codec", [*CODEC_DTYPES, "int8"])
def test_a_gpu_writes_and_reads_what_a_cpu_does(codec):
    device, shape = torch.device("cuda"), (2, 3, 100)
    for seed in range(20):  # Pinned memory is used again: what is still on its way must not be written over.
        hidden = noise(shape, seed, 0)
        payload = to_payload(hidden.to(device), codec)
        assert bytes(payload) == bytes(to_payload(hidden, codec))
        back = from_payload(payload, shape, codec, dtype=torch.float32, device=device)
        assert torch.equal(back.cpu(), arrive(bytes(payload), shape, codec, torch.float32))
