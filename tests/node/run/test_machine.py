"""Measuring a machine: the figures are those of what was run, and it does not take long."""

import time

import pytest
import torch

from node.model.quantise import SCHEMES
from node.run.machine import MIB, Probe, _matrices, measure_machine, undisturbed

CPU = torch.device("cpu")


@pytest.mark.parametrize("scheme", [None, SCHEMES["int8"]])
def test_every_figure_is_that_of_a_machine(scheme):
    started_s = time.monotonic()
    machine = measure_machine(Probe(CPU, torch.float32, scheme, 512, 8 * MIB))
    assert time.monotonic() - started_s < 30, "it is said to take about two seconds"
    assert 1e6 < machine.bytes_per_s < 1e13
    assert 1e6 < machine.flops_per_s < 1e15
    assert 0 <= machine.block_overhead_s < 1
    assert 0 <= machine.step_overhead_s < 1


@pytest.mark.parametrize("wanted_mib", [2, 40])
@pytest.mark.parametrize("width", [32, 500, 2048])
def test_as_many_weights_are_read_as_the_span_has(width, wanted_mib):
    layers, held = _matrices(Probe(CPU, torch.bfloat16, None, width, 0), wanted_mib * MIB)
    assert held == sum(layer.weight.numel() * 2 for layer in layers)
    assert held == pytest.approx(wanted_mib * MIB, rel=0.35)


def test_a_stall_of_the_machine_does_not_count():
    assert undisturbed([5.0, 1.0, 1.1, 1.2, 900.0, 1.3, 1.4, 1.5]) == 1.2
