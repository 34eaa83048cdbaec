"""Every honest way gives what the plain one gives, and a server says in words what it is."""

import pytest
import torch

from node.check.cheats import LAZY, SPOILED, nf4, svd
from node.check.honest import CPU, WAYS, Server, alone, servers_of
from node.check.reference import HELD_IN, reference_span
from node.model.checkpoint import Checkpoint
from tests.families import FAMILIES, build


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    build("llama", {**FAMILIES["llama"], "hidden_size": 64, "intermediate_size": 128}).save_pretrained(directory)
    return Checkpoint.open(str(directory))


@pytest.fixture(scope="module")
def span(checkpoint):
    return servers_of("float32", [CPU])[0].build(checkpoint, 0, 4)


def texts(rows=3, positions=128):
    return torch.randn(rows, positions, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_what_the_plain_one_gives(span, way):
    due, given = alone(span, texts()), WAYS[way](span, texts())
    torch.testing.assert_close(given, due[:, -given.shape[1] :], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("held_in", HELD_IN)
def test_every_server_of_declared_weights_is_near_their_reference_and_is_named(checkpoint, held_in):
    reference = reference_span(checkpoint, held_in, 1, 3, CPU)
    due = alone(reference, texts(1, 64))
    servers = servers_of(held_in, [CPU])
    assert len({server.name for server in servers}) == len(servers)
    for server in servers:
        built = server.build(checkpoint, 1, 3)
        given = alone(built, texts(1, 64).to(built.dtype)).float()
        room = 1e-5 if server.dtype == torch.float32 else 0.03
        assert float((given - due).norm() / due.norm()) < room, server.name


def test_a_server_with_eager_attention_has_it(checkpoint):
    built = Server("float32", torch.float32, CPU, attention="eager").build(checkpoint, 0, 1)
    assert built._model.config._attn_implementation == "eager"
    other = Server("float32", torch.float32, CPU).build(checkpoint, 0, 1)
    assert other._model.config._attn_implementation == "sdpa"


def test_weights_in_bfloat16_are_rounded_in_the_reference(checkpoint):
    exact, rounded = (reference_span(checkpoint, kind, 0, 1, CPU) for kind in ("float32", "bfloat16"))
    assert exact.dtype == rounded.dtype == torch.float32
    difference = (alone(exact, texts(1, 8)) - alone(rounded, texts(1, 8))).abs().max()
    assert 1e-5 < difference < 0.1


@pytest.mark.parametrize("cheat", SPOILED)
def test_spoiled_weights_keep_their_shape_and_differ(cheat):
    weight = torch.randn(48, 80, generator=torch.Generator().manual_seed(0))
    spoilt = SPOILED[cheat](weight, torch.Generator().manual_seed(1))
    error = float((spoilt - weight).norm() / weight.norm())
    assert spoilt.shape == weight.shape
    assert 0.002 < error < 0.6


def test_nf4_has_sixteen_levels_in_each_group_and_keeps_its_largest_weight():
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    spoilt = nf4(weight, torch.Generator())
    assert all(len(row.unique()) <= 16 for row in spoilt)
    assert torch.equal(spoilt.abs().amax(dim=1), weight.abs().amax(dim=1))


def test_a_truncated_weight_has_the_rank_that_was_asked_for():
    weight = torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
    assert int(torch.linalg.matrix_rank(svd(0.5)(weight, torch.Generator()))) == 5


@pytest.mark.parametrize("cheat", LAZY)
def test_lazy_servers_send_something_else_of_the_same_shape(span, cheat):
    hidden = texts()
    due, given = alone(span, hidden), LAZY[cheat](span, hidden, torch.Generator().manual_seed(0))
    due = due[:, -given.shape[1] :]
    assert given.shape == due.shape
    assert float((given - due).norm() / due.norm()) > 0.01


def test_of_one_block_the_skipped_one_is_all(span):
    hidden = texts(1, 64)
    assert torch.equal(LAZY["skipped layer"](span.view(2, 3), hidden, torch.Generator()), hidden)
