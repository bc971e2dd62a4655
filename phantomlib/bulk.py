"""The bulk of the readout: how the overlaps of all token pairs are distributed."""

import numpy as np
import torch
from torch import Tensor

from phantomlib.order_parameter import normalise


def sample_overlaps(E: Tensor, pairs: int, seed: int = 0) -> np.ndarray:
    """Overlaps g_ij (n,) of randomly chosen pairs of distinct rows of a readout ``E`` (V, d); n is at most ``pairs``."""
    generator = torch.Generator().manual_seed(seed)
    i, j = torch.randint(len(E), (2, pairs), generator=generator).to(E.device)
    keep = i != j
    e = normalise(E)
    return (e[i[keep]] * e[j[keep]]).sum(-1).cpu().numpy()
