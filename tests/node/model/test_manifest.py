import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.model.manifest import canonical_config, manifest, short_name

DIGESTS = [bytes([number]) * 32 for number in range(3)]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
configs = st.dictionaries(st.text(), json_values, max_size=6)


@given(configs)
def test_a_config_read_back_from_its_canonical_form_is_the_same_config(config):
    kept = {key: value for key, value in config.items() if key not in ("transformers_version", "_name_or_path")}
    assert json.loads(canonical_config(config)) == kept


@given(configs)
def test_the_order_of_keys_does_not_matter(config):
    assert canonical_config(dict(reversed(config.items()))) == canonical_config(config)


@given(configs, st.text(), st.text())
def test_who_saved_a_config_does_not_matter(config, version, path):
    saved = {**config, "transformers_version": version, "_name_or_path": path}
    bare = {key: value for key, value in config.items() if key not in ("transformers_version", "_name_or_path")}
    assert canonical_config(saved) == canonical_config(bare)


def test_incidental_keys_count_deeper_down():
    assert canonical_config({"text_config": {"_name_or_path": "a"}}) != canonical_config({"text_config": {}})


@given(st.permutations(DIGESTS))
def test_the_order_of_weight_files_does_not_matter(digests):
    assert manifest({"a": 1}, digests) == manifest({"a": 1}, DIGESTS)


def test_each_part_of_a_model_changes_its_manifest():
    base = manifest({"a": 1}, DIGESTS)
    assert base != manifest({"a": 2}, DIGESTS)
    assert base != manifest({"a": 1}, DIGESTS[:2])
    assert base != manifest({"a": 1}, [*DIGESTS, DIGESTS[0]])


def test_the_manifest_is_what_the_protocol_says():
    config = hashlib.sha256(b'{"a":"\\u00e9","b":[1,2.5,null]}').digest()
    expected = hashlib.sha256(b"efedllm/manifest/1\n" + config + DIGESTS[0] + DIGESTS[1]).digest()
    assert manifest({"b": [1, 2.5, None], "a": "é"}, [DIGESTS[1], DIGESTS[0]]) == expected


@pytest.mark.parametrize("digests", [[], [b"short"], [bytes(32), bytes(31)]])
def test_a_manifest_without_whole_digests_is_refused(digests):
    with pytest.raises(ValueError, match="SHA-256"):
        manifest({}, digests)


def test_the_short_name_ends_with_eight_digits_of_the_manifest():
    assert short_name("llama", bytes.fromhex("0123456789abcdef") + bytes(24)) == "llama@01234567"
