"""One pass of any function of tensors: forward, or forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from longwave.benchmarks.settings import Settings


class Pass:
    """Runs ``function`` as a pass does; called, it gives the outputs or the gradients.

    Args:
        function: takes nothing and gives tensors, in any nesting.
        leaves: what the backward pass differentiates by; unused ones are allowed.
        kind: ``forward`` or ``forward_backward``.
        upstream: gradients of the outputs; ``None`` for ones, allocated at the first call.
    """

    def __init__(
        self,
        function: Callable[[], Any],
        leaves: Iterable[Tensor],
        kind: str,
        settings: Settings,
        upstream: Sequence[Tensor] | None = None,
    ) -> None:
        self.function, self.settings = function, settings
        self.leaves = [leaf for leaf in leaves if leaf.requires_grad]
        self.backward = kind == "forward_backward"
        self.upstream = upstream

    def __call__(self) -> Any:
        with torch.set_grad_enabled(self.backward), self.settings.precision():
            outputs = self.function()
        if not self.backward:
            return outputs
        outputs = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not outputs:  # positions and the like
            return ()
        if self.upstream is None:
            self.upstream = [torch.ones_like(output) for output in outputs]
        return torch.autograd.grad(outputs, self.leaves, self.upstream, allow_unused=True)
