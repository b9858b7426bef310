"""Optimizers: AdamW, or Muon for the matrices of the body with AdamW for the rest."""

from __future__ import annotations

from collections import ChainMap
from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from longwave.mixers import TokenMixer


class MuonWithAdamW(Optimizer):
    """Muon on some groups and AdamW on the others, as one optimizer.

    Muon's update has the size of AdamW's, so that both take the same learning rate. Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon; https://arxiv.org/abs/2502.16982 for the scale.
    """

    def __init__(self, muon_groups: list[dict], adamw_groups: list[dict], betas: tuple[float, float]) -> None:
        self.parts = (
            Muon(muon_groups, lr=1.0, adjust_lr_fn="match_rms_adamw"),
            AdamW(adamw_groups, lr=1.0, betas=betas),
        )
        super().__init__([{"params": group["params"]} for part in self.parts for group in part.param_groups], {})
        self._adopt()

    def step(self, closure=None) -> None:
        """One update of every group."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Both optimizers' states."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._adopt()

    def _adopt(self) -> None:
        """Share the parts' groups and states, which schedulers and the Trainer reach through this object."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self.state = ChainMap(*(part.state for part in self.parts))


def build_optimizer(model: nn.Module, kind: str, *, weight_decay: float, betas: tuple[float, float]) -> Optimizer:
    """``"adamw"`` or ``"muon"``, with rates of 1 that a schedule multiplies.

    Vectors have no weight decay. A mixer's own wishes (``TokenMixer.parameter_options``) come on top.
    """
    options = {
        id(parameter): module.parameter_options().get(name, {})
        for module in model.modules()
        if isinstance(module, TokenMixer)
        for name, parameter in module.named_parameters()
    }
    for module in model.modules():
        if isinstance(module, TokenMixer):
            _check_options(module)
    body = {id(p) for block in getattr(model, "blocks", []) for p in block.parameters()}
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        wishes = options.get(id(parameter), {})
        decay = wishes.get("weight_decay", weight_decay if parameter.dim() > 1 else 0.0)
        key = (id(parameter) in body and parameter.dim() == 2, decay, wishes.get("rate", 1.0))
        groups.setdefault(key, []).append(parameter)

    def chosen(*, matrices: bool | None) -> list[dict[str, Any]]:
        return [
            {"params": parameters, "weight_decay": decay, "lr": rate}
            for (is_matrix, decay, rate), parameters in groups.items()
            if matrices is None or is_matrix == matrices
        ]

    if kind == "muon" and any(is_matrix for is_matrix, _, _ in groups):
        return MuonWithAdamW(chosen(matrices=True), chosen(matrices=False), betas)
    return AdamW(chosen(matrices=None), betas=betas)


def _check_options(mixer: TokenMixer) -> None:
    names = dict(mixer.named_parameters())
    for name, wishes in mixer.parameter_options().items():
        if name not in names or set(wishes) - {"weight_decay", "rate"}:
            raise ValueError(
                f"{type(mixer).__name__}.parameter_options: {name!r}: {dict(wishes)!r}; "
                f"legal: a parameter's name to weight_decay or rate"
            )
