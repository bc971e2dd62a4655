"""Whole runs on torch's meta device: who asks it for a number, or hands it a tensor of the CPU, is told so by an error."""

import copy
import dataclasses

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from phantomlib.engine import optimizer, recorder
from phantomlib.engine.finetune import Replica, advance_on_device
from phantomlib.engine.loss import LOSSES
from phantomlib.engine.recipe import Recipe

CASES = [  # recipe, replicas, engine, parameters up to this size are updated together
    ({"optimizer": "sgd"}, 3, "batch axis", 0),
    ({"optimizer": "adam", "snapshots": (0, 2)}, 3, "batch axis", 0),
    ({"optimizer": "adam"}, 1, "batch axis", 0),
    ({"optimizer": "adamw", "weight_decay": 0.1}, 3, "batch axis", 2**17),
    ({"optimizer": "sgd", "method": "lora"}, 1, "one by one", 0),
    ({"optimizer": "adam", "method": "lora"}, 3, "batch axis", 300),
    ({"optimizer": "adam"}, 3, "vmap", 0),
    ({"optimizer": "adam", "method": "lora"}, 3, "vmap", 2**17),
    ({"optimizer": "adam"}, 2, "one by one", 0),
    *(({"loss": loss}, 2, "batch axis", 0) for loss in LOSSES),
]


def run_on_meta(architecture, settings, n, engine):
    on_cpu = tiny.model(architecture, "float32")
    model = dataclasses.replace(on_cpu, module=copy.deepcopy(on_cpu.module).to("meta"))
    replicas = [Replica(tiny.contexts(on_cpu)[r % 2], 0.01 * (r + 1), 0) for r in range(n)]
    extra = {"entropy": lambda p, E, c, k: -(p * p.log()).sum(-1)}
    return advance_on_device(model, replicas, Recipe(steps=2, rank=2, **settings), engine, extra, lambda done: None)


@pytest.mark.parametrize("settings, n, engine, small", CASES, ids=str)
@pytest.mark.parametrize("architecture", ["GPT2", "Llama"])
def test_no_step_waits_for_the_device(architecture, settings, n, engine, small, monkeypatch):
    monkeypatch.setattr(optimizer, "SMALL", small)
    fields, used = run_on_meta(architecture, settings, n, engine)
    assert used == engine and fields.keys() >= recorder.RECORDED.keys() | {"entropy"}
    assert all(field.is_meta for field in fields.values())


class SmallDevice(TorchDispatchMode):
    """A device without double precision, such as Apple's; it notes the size of the largest tensor that the recorder makes."""

    largest, recording, known = 0, False, ()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in (x for x in tree_leaves(found) if isinstance(x, torch.Tensor)):
            if x.dtype == torch.float64 and x.is_meta:
                raise TypeError("no double precision here")
            if self.recording and x.untyped_storage()._cdata not in self.known:
                self.largest = max(self.largest, x.numel())
        return found


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_device_without_double_precision_records_without_copies_of_the_readout(method, monkeypatch):
    monkeypatch.setattr(recorder, "READ_AT_ONCE_ON_DEVICE", 2 * 16)
    device, real = SmallDevice(), recorder.Recorder._read_readout

    def watched(self):
        assert self.wide == torch.float32
        device.recording, device.known = True, [E.untyped_storage()._cdata for E in (self.E, self.E_0)]
        try:
            return real(self)
        finally:
            device.recording = False

    monkeypatch.setattr(recorder.Recorder, "_read_readout", watched)
    with device:
        run_on_meta("GPT2", {"method": method}, 2, "batch axis")
    assert 0 < device.largest <= 2 * 2 * tiny.V  # (R, V, 2): overlaps with c and k
