"""Muon (K. Jordan and others, 2024): momentum whose update, for every weight matrix, is replaced by the nearest
orthogonal one, so that all directions learn at one speed. Convolutions are matrices of (out, in·k·k).

Same method as torch.optim.Muon, which takes 2-D parameters only and iterates on the wide matrix. Here the
Newton–Schulz iteration runs on the n×n Gram matrix, n the smaller side: two wide products in all instead of three
a round, and every weight with the same n joins one batched product.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

QUINTIC = (3.4445, -4.7750, 2.0315)  # a + b·s² + c·s⁴ drives every singular value s to about 1 in five rounds
ROUNDS = 5


class Muon(Optimizer):
    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        """lr: step per unit spectral norm; weight_decay: decoupled, as in AdamW. Momentum is Nesterov's."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            gradients = [weight.grad for weight in weights]
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            momenta = [self.state[weight]["momentum"] for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
            directions = orthogonalized([update.flatten(1) for update in updates])
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            for weight, direction in zip(weights, directions, strict=True):
                out, fan_in = direction.shape
                weight.add_(direction.view_as(weight), alpha=-group["lr"] * max(1.0, out / fan_in) ** 0.5)


def orthogonalized(matrices: list[Tensor]) -> list[Tensor]:
    """For each (out, in) float32 matrix about U·Vᵀ of its singular value decomposition, in the same order."""
    wide = [m if m.shape[0] <= m.shape[1] else m.T for m in matrices]
    by_side: dict[int, list[int]] = defaultdict(list)
    for i, m in enumerate(wide):
        by_side[len(m)].append(i)
    result: list[Tensor] = [m.new_empty(0) for m in matrices]
    for members in by_side.values():
        roots = inverse_square_roots(torch.stack([wide[i] @ wide[i].T for i in members]))
        for i, root in zip(members, roots, strict=True):
            direction = root @ wide[i]
            result[i] = direction if matrices[i] is wide[i] else direction.T.contiguous()
    return result


def inverse_square_roots(gram: Tensor) -> Tensor:
    """(B, n, n) float32 XXᵀ -> about (XXᵀ)^(-1/2), by the quintic Newton–Schulz iteration."""
    trace = gram.diagonal(dim1=1, dim2=2).sum(dim=1).clamp(min=1e-14).view(-1, 1, 1)
    gram = gram / trace
    a, b, c = QUINTIC
    identity = torch.eye(gram.shape[1], device=gram.device, dtype=gram.dtype)
    product = identity / trace.sqrt()
    for round in range(ROUNDS):
        polynomial = torch.baddbmm(b * gram, gram, gram, alpha=c) + a * identity
        product = polynomial @ product
        if round < ROUNDS - 1:
            gram = polynomial @ gram @ polynomial
    return product
