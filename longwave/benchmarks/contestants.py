"""Who runs: a mixer by its label, and softmax's floor, the same projections around PyTorch's attention alone."""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor

from longwave.benchmarks.passes import Pass
from longwave.benchmarks.settings import BASELINE, Settings
from longwave.mixers import TokenMixer, build, resolve
from longwave.ops import BackendUnavailable, linear

#: Tokens of the run that compiles what is compiled at first use.
SHORT = 128


class Contestant:
    """A mixer with the weights that its constructor gives it, on the device and in the precision of the settings."""

    def __init__(self, label: str, settings: Settings) -> None:
        self.label, self.settings = label, settings
        self.arguments = dict(settings.arguments.get(label, {}))
        if settings.num_kv_heads is not None and "num_kv_heads" in inspect.signature(resolve(label)).parameters:
            self.arguments.setdefault("num_kv_heads", settings.num_kv_heads)
        torch.manual_seed(0)
        mixer = build(label, settings.hidden_size, settings.num_heads, self.arguments)
        self.mixer: TokenMixer = mixer.to(settings.device, settings.weight_dtype)
        self._output_dtype: torch.dtype | None = None

    def make_pass(self, kind: str, num_tokens: int) -> Pass:
        """``forward`` or ``forward_backward`` of a sequence of random rows."""
        self.mixer.train(kind == "forward_backward")
        x = rows(self.settings, num_tokens).requires_grad_()
        upstream = None
        if self._output_dtype is not None:
            upstream = [torch.ones(x.shape, dtype=self._output_dtype, device=x.device)]
        return Pass(lambda: self.mixer(x)[0], (x, *self.mixer.parameters()), kind, self.settings, upstream)

    def compile(self) -> None:
        """Run short, so that kernels are compiled and the output's dtype is known.

        Raises:
            BackendUnavailable: an op of the mixer lacks the backend.
        """
        run = self.make_pass("forward_backward", min(SHORT, max(self.settings.lengths)))
        try:
            run()
        except BackendUnavailable:
            raise
        except Exception:  # whatever is wrong with a mixer, its certificate says it
            return
        assert run.upstream is not None
        self._output_dtype = run.upstream[0].dtype


class Floor:
    """The least that softmax attention takes: four projections and PyTorch's fused attention.

    No rotary positions, no documents, no state; the weights are the baseline's own, and the projections are
    multiplied by the faster library, as the baseline's are.
    """

    def __init__(self, baseline: Contestant) -> None:
        assert baseline.label == BASELINE
        self.baseline, self.settings = baseline, baseline.settings
        mixer = baseline.mixer
        self.q, self.k, self.v, self.o = (
            (layer.weight, layer.bias) for layer in (mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.o_proj)
        )

    def attend(self, x: Tensor) -> Tensor:
        """`[B, N, D]` to `[B, N, D]`."""
        q, k, v = self._project(x)
        return self._output(
            F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        )

    def make_pass(self, kind: str, num_tokens: int) -> Pass:
        """The pass that :meth:`Contestant.make_pass` gives, of this function."""
        x = rows(self.settings, num_tokens).requires_grad_()
        upstream = [torch.ones(x.shape, dtype=self.settings.row_dtype, device=x.device)]
        return Pass(lambda: self.attend(x), (x, *self.baseline.mixer.parameters()), kind, self.settings, upstream)

    def make_step(self, num_tokens: int):
        """A function of `x [B, D]` that attends to ``num_tokens`` cached keys and values and to x itself."""
        q, k, _ = self._project(rows(self.settings, 1))
        keys = torch.randn(*k.shape[:2], num_tokens + 1, k.shape[3], dtype=self.settings.row_dtype, device=q.device)
        values = torch.randn_like(keys)

        def step(x: Tensor) -> Tensor:
            q, k, v = self._project(x[:, None])
            keys[:, :, -1:], values[:, :, -1:] = k, v
            out = F.scaled_dot_product_attention(q, keys, values, enable_gqa=q.shape[1] != k.shape[1])
            return self._output(out)[:, 0]

        return step

    def _project(self, x: Tensor) -> list[Tensor]:
        """Queries, keys, values `[B, H or G, N, d]`."""
        parts = (linear(x, *layer) for layer in (self.q, self.k, self.v))
        return [part.view(*x.shape[:2], -1, self.settings.head_dim).transpose(1, 2) for part in parts]

    def _output(self, heads: Tensor) -> Tensor:
        return linear(heads.transpose(1, 2).flatten(2), *self.o)


def rows(settings: Settings, num_tokens: int, seed: int = 0) -> Tensor:
    """Random rows `[B, N, D]`, the same for every contestant."""
    generator = torch.Generator().manual_seed(seed)
    shape = (settings.batch_size, num_tokens, settings.hidden_size)
    return torch.randn(shape, generator=generator, dtype=settings.weight_dtype).to(settings.device)
