"""DWARF's gathers: what the certificate, which stops at 257 tokens, and the golden files do not see."""

from __future__ import annotations

import pytest
import torch

from longwave.mixers import build
from longwave.mixers.dwarf import CONDITIONS, FAR, Lattice
from longwave.model import LongwaveForCausalLM
from longwave.training import load_run
from longwave.verification import certify
from longwave.verification.subjects import mixer_subject, redraw

#: Conditions of the published models to their parameters, 32,000 tokens of vocabulary included.
PARAMETERS = {
    "dwarf-a-13m": 13_326_352,
    "dwarf-b-13m": 13_326_400,
    "dwarf-c-13m": 13_326_784,
    "dwarf-d-13m": 13_326_832,
    "dwarf-g-13m": 14_115_728,
    "dwarf-h-13m": 14_115_740,
    "dwarf-i-13m": 14_117_840,
    "dwarf-j-13m": 14_117_504,
    "dwarf-k-13m": 13_855_424,
    "dwarf-krp-13m": 14_119_616,
    "dwarf-l-13m": 13_852_736,
    "dwarf-lrp-13m": 14_115_968,
    "dwarf-n-13m": 14_116_928,
    "dwarf-p-13m": 14_118_368,
    "dwarf-m-13m": 13_984_480,
    "dwarf-m2-13m": 13_439_200,
    "dwarf-u-13m": 14_057_352,
}
#: In millions, as far as published.
MILLIONS = {
    "dwarf-p-27m": 26.78,
    "dwarf-m-27m": 26.46,
    "dwarf-m-85m": 88.3,
    "transformer-dwarf-13m": 21.6,
    "transformer-dwarf-27m": 37.97,
    "transformer-dwarf-85m": 101.4,
}
VARIANTS = {
    **{condition: {"condition": condition} for condition in CONDITIONS},
    "absolute taps": {"condition": "K", "offsets": {"tap_sign": "abs"}},
    "static gains, no bypass": {"condition": "J", "offsets": {"scale_gain": "static", "bypass": False}},
    "elu over a list": {"condition": "N", "kind": "elu", "offsets": [0, 1, 5, 40]},
    "dot over a list": {"condition": "N", "kind": "dot", "offsets": [0, 3], "score_bias": "none"},
    "no gate": {"condition": "N", "gate": "none"},
    "injection": {"condition": "U", "kv_inject": True},
    "local window": {"condition": "N", "local_window": 7},
    "L with phantoms": {"condition": "L", "phantom": "original"},
    **{
        kind: {"condition": "N", "field": {"kind": kind, "levels": 4}}
        for kind in ("fir", "cascade", "pyramid", "delta")
    },
}


def drawn(name, arguments, hidden_size=8, heads=2):
    mixer = build(name, hidden_size, heads, arguments).double().eval()
    redraw(mixer)
    return mixer


@pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_is_lawful(arguments):
    certificate = certify(mixer_subject("dwarf", arguments), longest=67)
    assert certificate.passed, [line for line in certificate.lines if line.verdict == "FAIL"]


def test_k_with_phantoms_breaks_what_it_declares_where_it_must():
    """At position 0 the phantoms weigh most, and a piece of one token has none."""
    certificate = certify(mixer_subject("dwarf", {"condition": "K", "phantom": "original"}), longest=67)
    found = {line.key: line for line in certificate.lines}
    assert certificate.passed
    assert {key for key, line in found.items() if line.verdict == "DECLARED-FAIL"} == {"P2", "P3", "P4"}
    assert "output 0 " in found["P3"].where


def test_phantoms_of_l_are_a_function_of_the_position_alone():
    """They stay in the softmax whatever the length: an odd function, but one that obeys the law."""
    mixer, x = drawn("dwarf", {"condition": "L", "phantom": "original"}), torch.randn(1, 90, 8).double()
    masked = drawn("dwarf", {"condition": "L"})
    whole = mixer(x)[0]
    assert (mixer(x[:, :40])[0] - whole[:, :40]).abs().max() < 1e-12
    assert (masked(x)[0] - whole).abs().max() > 0.01


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("dwarf", {"condition": "N"}), ("dwarf", {"condition": "K"}), ("dwarf_field", {"condition": "H"})],
    ids=str,
)
def test_steps_equal_the_parallel_form_beyond_the_farthest_distance(name, arguments):
    mixer, x = drawn(name, arguments, 4), torch.randn(2, 3110, 4).double()
    whole, _ = mixer(x)
    _, state = mixer(x[:, :3076], return_state=True)
    for n in range(3076, 3110):
        y, state = mixer(x[:, n], state)
        assert (y - whole[:, n]).abs().max() < 1e-12


@pytest.mark.parametrize("condition", ["N", "P", "LRP", "K"])
def test_a_row_reads_its_distances_and_no_other(condition):
    mixer, x = drawn("dwarf", {"condition": condition}), torch.randn(1, 1700, 8).double()
    row = x[:, -1].clone().requires_grad_()
    read = x.detach().requires_grad_()
    y, _ = mixer(torch.cat([read[:, :-1], row[:, None]], dim=1))
    (grad,) = torch.autograd.grad(y[0, -1].sum(), read)
    found = 1699 - grad[0].abs().sum(dim=1).nonzero().flatten()
    assert sorted(found.tolist()) == sorted({d for d in mixer.distances if 0 < d < 1700})


@pytest.mark.parametrize("arguments", [{"condition": "N"}, {"condition": "K", "offsets": {"tap_sign": "abs"}}], ids=str)
def test_weights_are_an_average(arguments):
    """Values all alike come out as they are, but for the 1e-6 in the normaliser of K."""
    mixer = drawn("dwarf", {**arguments, "gate": "none"})
    with torch.no_grad():
        mixer.qkv_proj.weight[16:] = 0.0
        mixer.qkv_proj.bias[16:] = 1.0
        y, _ = mixer(torch.randn(1, 100, 8).double())
        assert (y - mixer.o_proj(torch.ones(8).double())).abs().max() < 1e-5


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_presets_have_the_published_parameters(name, count):
    assert _parameters(name) == count


@pytest.mark.parametrize(("name", "millions"), MILLIONS.items())
def test_larger_presets_have_the_published_size(name, millions):
    digits = len(str(millions).split(".")[1])
    assert round(_parameters(name) / 1e6, digits) == millions


def _parameters(name):
    with torch.device("meta"):
        model = LongwaveForCausalLM(load_run(name).model_configuration(32000))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"condition": "Q"}, "condition: input should be 'J', 'K'"),
        ({"offsets": [1, 2]}, r"offsets must be distinct, at least 0, and hold 0, got \[1, 2\]"),
        ({"offsets": [0, 2, 2]}, "offsets must be distinct"),
        ({"offsets": {"n_scale": 3}}, r"offsets has no field 'n_scale' \(did you mean 'n_scales'\?\)"),
        ({"offsets": {"n_scales": 21}}, "a lattice has 1 to 20 scales and at least one tap, got 21 and 4"),
        ({"phantom": "original"}, "phantom 'original' needs a lattice and a normaliser"),
        ({"condition": "J", "phantom": "original"}, "phantom 'original' needs a lattice and a normaliser"),
        ({"score_bias": "d4_warm"}, "'d4_warm' needs a lattice"),
        ({"condition": "J", "score_bias": "zero"}, "dot takes no score_bias, got 'zero'"),
        ({"local_window": 0}, "local_window must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        build("dwarf", 8, 2, arguments)


def test_the_lattice_of_eleven_scales_has_24_distances():
    mixer = build("dwarf", 8, 2, {"condition": "LRP"})
    assert len(mixer.distances) == 24
    assert mixer.distances[-2:] == (2048, 3072)
    assert len(build("dwarf", 8, 2, {"condition": "L"}).distances) == 44
    assert len(FAR) == 9
    assert Lattice().n_scales == 11
