import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.codec import encode
from dht.errors import BadAddress, BadJoinCode, BadRecord
from dht.identity import Identity
from dht.parameters import JoinCode, SwarmParameters, parameters_hash, parse_join, split_address
from dht.records import Kind, seal

PEER = Identity.from_seed(bytes(range(32))).peer_id
ADDRESS = f"/ip4/192.168.1.5/tcp/31337/p2p/{PEER}"
CODE = JoinCode((ADDRESS, f"/dns4/example.org/tcp/1/p2p/{PEER}"), "lab", b"h" * 32, b"s" * 32)


def names():
    return st.text(alphabet=st.characters(exclude_categories=["C", "Z"]), max_size=30)


@given(names(), st.sampled_from([b"", b"h" * 32]), st.one_of(st.none(), st.binary(min_size=32, max_size=32)))
def test_a_join_code_says_what_was_put_into_it(name, digest, secret):
    code = JoinCode((ADDRESS,), name, digest, secret)
    assert JoinCode.parse(code.encode()) == code
    assert parse_join(code.encode()) == code


def test_line_breaks_and_spaces_in_a_pasted_code_do_not_matter():
    text = CODE.encode()
    assert JoinCode.parse(f"  {text[:30]}\n{text[30:60]} \t{text[60:]}\n") == CODE


@given(
    st.integers(0, len(CODE.encode()) - 1),
    st.sampled_from("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"),
)
def test_a_typing_error_anywhere_is_noticed(position, letter):
    text = CODE.encode()
    if text[position] != letter:
        with pytest.raises(BadJoinCode):
            JoinCode.parse(text[:position] + letter + text[position + 1 :])


@given(st.integers(0, len(CODE.encode()) - 1))
def test_a_code_cut_short_is_noticed(length):
    with pytest.raises(BadJoinCode, match="copy it again"):
        JoinCode.parse(CODE.encode()[:length])


@given(st.text(max_size=60))
def test_any_text_is_a_code_or_is_refused_with_a_sentence(text):
    with pytest.raises((BadJoinCode, BadAddress), match=": "):
        parse_join(text)


@pytest.mark.parametrize("text", ["", " ", "not a code", "0OIl", "z" * 10_000, "ä" * 50])
def test_what_is_no_code_is_refused_with_the_mend(text):
    with pytest.raises(BadJoinCode, match="efedllm bootstrap"):
        JoinCode.parse(text)


def test_a_code_of_a_later_version_says_to_update():
    from dht.parameters import _checksum

    payload = bytes([2]) + encode(["future"])
    with pytest.raises(BadJoinCode, match="update"):
        JoinCode.parse(base58.b58encode(payload + _checksum(payload)).decode())


@pytest.mark.parametrize(
    "fields",
    [
        ["lab", [], b"", b"short"],
        ["lab", [], b"h" * 31, b""],
        ["lab", [["/ip4/1.2.3.4/tcp/1", b"x" * 38]], b"", b""],
        ["lab", [["", bytes.fromhex("002408011220") + bytes(32)]], b"", b""],
        ["lab", [[1, 2]], b"", b""],
        ["lab", [], b"", b"", 1],
        [1, [], b"", b""],
        5,
    ],
)
def test_a_code_with_a_good_checksum_and_wrong_contents_is_refused(fields):
    from dht.parameters import _checksum

    payload = bytes([1]) + encode(fields)
    with pytest.raises(BadJoinCode):
        JoinCode.parse(base58.b58encode(payload + _checksum(payload)).decode())


@pytest.mark.parametrize("code", [JoinCode((), secret=b"short"), JoinCode((), parameters_hash=b"short")])
def test_a_code_that_could_not_be_read_again_is_not_written(code):
    with pytest.raises(ValueError):
        code.encode()


def test_the_secret_does_not_show_when_a_code_is_printed():
    assert "ssss" not in repr(CODE)
    assert "7373" not in repr(CODE)


@pytest.mark.parametrize("separator", [",", " ", "\n", ", "])
def test_addresses_join_a_public_swarm(separator):
    assert parse_join(separator.join([ADDRESS, ADDRESS])) == JoinCode((ADDRESS, ADDRESS))


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/1.2.3.4/tcp/1",
        f"/p2p/{PEER}",
        f"ip4/1.2.3.4/tcp/1/p2p/{PEER}",
        "/ip4/1.2.3.4/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}x",
        ",".join([ADDRESS] * 17),
    ],
)
def test_malformed_addresses_are_refused_with_an_example(text):
    with pytest.raises(BadAddress):
        parse_join(text)


def test_an_address_is_split_into_where_and_who():
    assert split_address(ADDRESS) == ("/ip4/192.168.1.5/tcp/31337", PEER)
    relayed = f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p-circuit"
    assert split_address(f"{relayed}/p2p/{PEER}") == (relayed, PEER)


def test_parameters_are_addressed_by_the_hash_of_their_envelope():
    founder, anchor = Identity.ephemeral(), Identity.ephemeral()
    parameters = SwarmParameters(founder.peer_id, 1, 86400, "lab", private=True, anchors=(anchor.peer_id,))
    signed = seal(parameters, founder)
    assert SwarmParameters.from_body(parameters.to_body()) == parameters
    assert parameters.key_parts(signed.envelope) == (parameters_hash(signed.envelope),)
    assert SwarmParameters.KIND == Kind.PARAMETERS


def test_parameters_out_of_bounds_are_refused():
    founder = Identity.ephemeral()
    for change in ({"epoch_s": 0}, {"audit_per_mille": 1001}, {"life_s": 0}, {"key_quota": 0}):
        fields = {"t": 1, "life_s": 1, "name": "lab", "private": False} | change
        with pytest.raises(BadRecord):
            SwarmParameters.from_body(SwarmParameters(founder.peer_id, **fields).to_body())
