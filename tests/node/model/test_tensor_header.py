import io
import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from node.errors import DamagedCheckpoint
from node.model.tensor_header import read_header, read_tensor

INTEGERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
UNSIGNED = [torch.uint16, torch.uint32, torch.uint64]
FLOATS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES = [*INTEGERS, *UNSIGNED, *FLOATS, torch.complex64]


def header_of(content):
    return read_header("w.safetensors", len(content), lambda begin, size_bytes: content[begin : begin + size_bytes])


def file_with(header, buffer=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + buffer


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        max_size=5,
    )
)
def test_every_tensor_is_read_as_the_reference_implementation_wrote_it(specs):
    tensors = {
        name: torch.arange(int(torch.Size(shape).numel()) * dtype.itemsize, dtype=torch.uint8)
        .fmod(2)
        .view(dtype)
        .reshape(shape)
        for name, (dtype, shape) in specs.items()
    }
    content = save(tensors)
    places = header_of(content)
    assert places.keys() == tensors.keys()
    for name, tensor in tensors.items():
        back = read_tensor(io.BytesIO(content), places[name])
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
        assert bytes(back.reshape(-1).view(torch.uint8).numpy()) == bytes(tensor.reshape(-1).view(torch.uint8).numpy())
        assert places[name].size_bytes == tensor.nbytes


def test_only_plain_floats_are_cast():
    content = save(
        {"a": torch.ones(3), "b": torch.ones(3, dtype=torch.int64), "c": torch.ones(3).to(torch.float8_e4m3fn)}
    )
    places = header_of(content)
    loaded = {name: read_tensor(io.BytesIO(content), place, dtype=torch.bfloat16) for name, place in places.items()}
    assert [loaded[name].dtype for name in "abc"] == [torch.bfloat16, torch.int64, torch.float8_e4m3fn]
    assert all(places[name].size_bytes_as(torch.bfloat16) == loaded[name].nbytes for name in "abc")


@given(st.data())
def test_every_truncation_is_refused(data):
    content = save({"a": torch.ones(5), "b": torch.zeros(2, 3)})
    cut = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(DamagedCheckpoint, match=r"w\.safetensors .*delete the file"):
        header_of(content[:cut])


@given(st.binary(max_size=200))
def test_garbage_is_refused(garbage):
    with pytest.raises(DamagedCheckpoint):
        header_of(garbage)


@given(st.binary(min_size=1, max_size=60), st.binary(max_size=20))
def test_a_header_of_garbage_is_refused(text, buffer):
    if text.strip() == b"{}" and not buffer:
        return
    with pytest.raises(DamagedCheckpoint):
        header_of(file_with(text, buffer))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (struct.pack("<Q", 2**63) + b"{}", "announces a header"),
        (struct.pack("<Q", 200_000_000) + b"{}", "announces a header"),
        (file_with(b"[]"), "not a JSON object"),
        (file_with(b"\xff\xff"), "not JSON"),
        (file_with(b"[" * 100_000), "not JSON"),
        (file_with({"a": {"dtype": "F32"}}), "other fields"),
        (file_with({"a": entry() | {"x": 1}}, bytes(8)), "other fields"),
        (file_with({"a": entry(dtype="F31")}, bytes(8)), "not known"),
        (file_with({"a": entry(dtype=["F32"])}, bytes(8)), "not known"),
        (file_with({"a": entry(shape=[-2])}, bytes(8)), "impossible shape"),
        (file_with({"a": entry(shape=[2.0])}, bytes(8)), "impossible shape"),
        (file_with({"a": entry(shape=[True, 2])}, bytes(8)), "impossible shape"),
        (file_with({"a": entry(shape=[1] * 40)}, bytes(8)), "impossible shape"),
        (file_with({"a": entry(offsets=[0, 8, 9])}, bytes(8)), "impossible shape"),
        (file_with({"a": entry(shape=[3])}, bytes(8)), "does not fill"),
        (file_with({"a": entry(offsets=[8, 0])}, bytes(8)), "does not fill"),
        (file_with({"a": entry(shape=[2**40, 2**40])}, bytes(8)), "does not fill"),
        (file_with({"a": entry(offsets=[8, 16])}, bytes(16)), "leaves a hole"),
        (file_with({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "over another one"),
        (file_with({"a": entry()}, bytes(7)), "its header describes"),
        (file_with({"a": entry()}, bytes(9)), "its header describes"),
    ],
)
def test_a_lying_header_is_refused_with_what_is_wrong(content, what):
    with pytest.raises(DamagedCheckpoint, match=what):
        header_of(content)


def test_a_file_that_shrinks_after_its_header_was_read_is_refused(tmp_path):
    content = save({"a": torch.ones(1000)})
    place = header_of(content)["a"]
    path = tmp_path / "w.safetensors"
    path.write_bytes(content[:-1])
    with path.open("rb", buffering=0) as stream, pytest.raises(DamagedCheckpoint, match="shorter"):
        read_tensor(stream, place)


def test_the_reference_implementation_refuses_the_same_truncation(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(save({"a": torch.ones(5)})[:-1])
    with pytest.raises(SafetensorError):
        safe_open(path, "pt").__enter__()
