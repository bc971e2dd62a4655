"""Which tensors a piece of work makes: the largest of each dtype, whatever the allocator does with them."""

from collections import defaultdict

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Largest(TorchDispatchMode):
    """While it is on, ``bytes[dtype]`` grows to the size of the largest new tensor of that dtype.

    Args:
        given: tensors that are there already; their views are no new tensors.
    """

    def __init__(self, *given: torch.Tensor):
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in given}
        self.bytes: dict[torch.dtype, int] = defaultdict(int)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in self.known:
                self.bytes[x.dtype] = max(self.bytes[x.dtype], x.untyped_storage().nbytes())
        return found
