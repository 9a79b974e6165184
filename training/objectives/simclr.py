"""SimCLR (arXiv 2002.05709, section 2.1): two views of an image find each other among all views of the batch.

`decoupled=True` is DCL (arXiv 2110.06848, section 3): the positive pair leaves the denominator, which takes away
the coupling that starves small batches of gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbone import Backbone
from training.objectives.pairs import Pairs
from training.objectives.temperature import Temperature


class SimCLR(Pairs):
    def __init__(
        self, backbone: Backbone, head: nn.Module, temperature: Temperature, decoupled: bool = False
    ) -> None:
        super().__init__(backbone, head)
        self.temperature, self.decoupled = temperature, decoupled

    def before_step(self, progress: float) -> None:
        self.temperature.anneal(progress)

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        return nt_xent(torch.cat([first, second]), self.temperature.value, self.decoupled)


def nt_xent(projections: Tensor, temperature: float | Tensor, decoupled: bool = False) -> Tensor:
    """Mean over all 2N anchors of -log( exp(s_pos/τ) / Σ_{k≠anchor} exp(s_k/τ) ), s the cosine similarity.

    projections: (2N, d) float, rows n and N + n a positive pair. decoupled: the sum also leaves out the positive.
    """
    z = F.normalize(projections, dim=1)
    total = len(z)
    similarity = z @ z.T / temperature
    anchor = torch.arange(total, device=z.device)
    partner = (anchor + total // 2) % total
    positive = similarity[anchor, partner]
    similarity = similarity.masked_fill(torch.eye(total, dtype=torch.bool, device=z.device), float("-inf"))
    if decoupled:
        similarity = similarity.scatter(1, partner[:, None], float("-inf"))
    return (similarity.logsumexp(dim=1) - positive).mean()
