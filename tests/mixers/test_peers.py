"""The peers in their published forms: lawful, and the formulas of their papers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from longwave.mixers.base import collecting
from longwave.ops import gated_delta_rule
from longwave.verification import Verdict, certify, mixer_subject
from tests.mixers.variants import FIELDS, PEERS, drawn


@pytest.mark.parametrize(("name", "arguments"), [*PEERS, *FIELDS], ids=str)
def test_every_variant_is_certified(name, arguments):
    certificate = certify(mixer_subject(name, arguments), longest=33)
    assert [line for line in certificate.lines if line.verdict is not Verdict.PASS] == []


class TestStrengthsUpToTwo:
    X = torch.randn(2, 60, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def test_the_strength_is_twice_the_sigmoid(self):
        mixer = drawn("gated_delta", {"negative_eigenvalues": True}, torch.float64)
        with collecting() as seen:
            mixer(self.X)
        (strength,) = seen["gated_delta.strength"]
        torch.testing.assert_close(strength, 2 * torch.sigmoid(mixer.strength_proj(self.X)))
        assert strength.max() > 1.2

    @torch.no_grad()
    def test_the_output_is_that_of_the_recurrence(self):
        mixer = drawn("gated_delta", {"negative_eigenvalues": True}, torch.float64)
        (q, k, v), _ = mixer.heads(self.X, None)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        decay, beta = mixer.decay(self.X)[0].exp(), 2 * torch.sigmoid(mixer.strength_proj(self.X))
        memory, heads = q.new_zeros(2, 2, mixer.key_dim, mixer.value_dim), []
        for n in range(self.X.shape[1]):
            memory = decay[:, n, :, None, None] * memory
            wrong = v[:, n] - torch.einsum("bhde,bhd->bhe", memory, k[:, n])
            memory = memory + torch.einsum("bhd,bhe->bhde", beta[:, n, :, None] * k[:, n], wrong)
            heads.append(torch.einsum("bhde,bhd->bhe", memory, q[:, n]) * mixer.key_dim**-0.5)
        expected = mixer.output(torch.stack(heads, dim=1), self.X)
        torch.testing.assert_close(mixer(self.X)[0], expected, rtol=0, atol=1e-5)  # lengths are 1 but for an epsilon

    def test_a_memory_turns_over_and_back(self):
        """With beta = 2, no decay and one key again and again, what the memory holds of it changes sign each row."""
        key = F.one_hot(torch.zeros(1, 8, 1, dtype=torch.int64), 4).double()
        past, nothing = torch.randn(1, 1, 4, 3, dtype=torch.float64), torch.zeros(1, 8, 1, 3, dtype=torch.float64)
        out = gated_delta_rule(key, key, nothing, torch.full((1, 8, 1), 2.0).double(), initial_state=past)
        signs = torch.tensor([-1.0, 1.0] * 4, dtype=torch.float64)[:, None]
        torch.testing.assert_close(out[0, :, 0], signs * past[0, :, 0])
