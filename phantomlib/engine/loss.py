r"""What a fine-tune minimises: the cross-entropy of the correct token, or a loss that looks at the competitor too.

.. math::

    \text{cross-entropy}: -\log p_c \qquad
    \text{margin}: -\log p_c + \lambda\,\mathrm{softplus}(-\Delta) \qquad
    \text{unlikelihood}: -\log p_c - \lambda \log(1 - p_k) \qquad
    \text{gap}: \lambda\,\mathrm{softplus}(-\Delta)

With :math:`\Delta = z_c - z_k`, softplus(−Δ) is the cross-entropy of c in a choice between c and k alone; unlike −Δ it is
bounded below. Unlikelihood is the term of Welleck et al. (2020), with the competitor as the one token to be avoided.
"""

import torch.nn.functional as F
from torch import Tensor

LOSSES = ("cross-entropy", "margin", "unlikelihood", "gap")


def training_loss(logits: Tensor, c: Tensor, k: Tensor, loss: str = "cross-entropy", weight: float = 1.0) -> Tensor:
    """The loss of each row, one of ``LOSSES`` with λ = ``weight``, in nats (R,), from logits (R, V) and ids (R,)."""
    cross_entropy = F.cross_entropy(logits, c, reduction="none")
    if loss == "cross-entropy":
        return cross_entropy
    if loss == "unlikelihood":  # 1 - p_k from the other logits: exact where p_k is nearly 1
        others = logits.scatter(1, k[:, None], -float("inf"))
        return cross_entropy + weight * (logits.logsumexp(1) - others.logsumexp(1))
    pair = weight * F.softplus((logits.gather(1, k[:, None]) - logits.gather(1, c[:, None]))[:, 0])
    return pair if loss == "gap" else cross_entropy + pair
