"""What auto takes where nothing was measured, by class of machine."""

import pytest
import torch

import genimg
from genimg import _native, info, priors

native = pytest.mark.skipif(not _native.available(), reason=f"no _C: {_native.why_not()}")


def stack_of(batch):
    x = torch.empty(batch, 512, 4, 4)
    block = genimg.ops.ConvBlock(genimg.ops.Direction.UP, torch.empty(512, 256, 4, 4), None, 2, 1)
    return genimg.explain("conv_stack", x, [block], training=True)


@pytest.mark.parametrize(
    ("capability", "isa", "amx", "name"),
    [
        ("AVX512", None, False, "AVX-512 without AMX"),
        ("AVX512", None, True, "AVX-512 with AMX"),
        ("AVX512", "avx2", True, "AVX2"),
        ("AVX2", None, False, "AVX2"),
        ("DEFAULT", None, False, "another CPU"),
    ],
)
def test_the_class_of_a_machine(monkeypatch, capability, isa, amx, name):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.delenv("GENIMG_CPU_ISA", raising=False)
    if isa is not None:
        monkeypatch.setenv("GENIMG_CPU_ISA", isa)
    assert priors.class_of_cpu().name.endswith(name)


def test_every_class_has_its_evidence():
    for machines in (priors.AVX512, priors.AMX, priors.AVX2, priors.OTHER):
        assert all(len(sentence) > 20 for sentence in machines.evidence)


@native
def test_machines_that_nobody_has_measured_run_pytorch(monkeypatch):
    assert stack_of(64).selected == "cpu"
    x = torch.randn(64, 16, 32, 32)
    assert genimg.explain("batch_norm_act", x, None, None, training=True).selected == "cpu"
    monkeypatch.setattr(priors, "CPU", priors.AVX2)
    table = stack_of(64)
    assert table.selected == "reference"
    assert "nobody has measured it on such a machine (x86-64, AVX2)" in str(table)
    assert "the priors of x86-64, AVX2" in table.decided
    assert genimg.explain("batch_norm_act", x, None, None, training=True).selected == "reference"


@native
def test_small_stacks_with_amx(monkeypatch):
    monkeypatch.setattr(priors, "CPU", priors.AMX)
    assert stack_of(64).selected == "cpu"
    assert stack_of(8).selected == "reference"
    assert "2,000 million multiplications" in str(stack_of(8))


def test_info_names_the_priors_and_their_evidence(monkeypatch):
    page = info.render(info.collect())
    assert "priors for the rest: x86-64, AVX-512 without AMX (genimg/priors.py)" in page
    assert priors.AVX512.evidence[0] in page
    assert "0 measured decisions in " in page
