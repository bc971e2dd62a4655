"""What names a function: a change of anything that it uses from outside, and of nothing else, changes its key."""

import functools
import inspect
import json
import sys
import types

import numpy as np
import pytest
import torch

from phantomlib import order_parameter
from phantomlib.errors import ParameterError
from phantomlib.runs.function_key import function_key

scale, shift, p_max, log = 2.0, torch.zeros(3), None, torch.log


def alone(p, E, c, k, power=2, *, eps=1e-9):
    return torch.sum(p**power, 1) + len(p) + eps


def with_global(p, E, c, k):
    return scale * p[:, 0]


def with_global_inside(p, E, c, k):
    return torch.stack([(lambda x: x * scale)(row) for row in p])


def with_array(p, E, c, k):
    return p[:, 0] + shift.sum()


def with_function(p, E, c, k):
    return with_global(p, E, c, k)


def with_imported(p, E, c, k):
    return log(p)[:, 0]


def with_attribute(p, E, c, k):
    return p.scale


def recursive(p, E, c, k):
    return p[:, 0] if scale else recursive(p, E, c, k)


def enclosed(value):
    def inner(p, E, c, k):
        return value * p[:, 0]

    return inner


def with_default(value):
    def inner(p, E, c, k, factor=value):
        return factor * p[:, 0]

    return inner


@pytest.mark.parametrize("function", [alone, with_attribute])
def test_a_function_that_uses_nothing_from_outside_is_named_by_its_text(function):
    assert function_key(function) == inspect.getsource(function)


@pytest.mark.parametrize("function", [with_global, with_global_inside, with_function, recursive])
def test_a_changed_global_changes_the_key_however_deep_it_is_used(function, monkeypatch):
    before = function_key(function)
    assert before == function_key(function) == json.loads(json.dumps(before))
    monkeypatch.setitem(globals(), "scale", 3.0)
    assert function_key(function) != before


@pytest.mark.parametrize(
    "name, function, values",
    [
        ("shift", with_array, [torch.zeros(3), torch.ones(3), torch.zeros(3, dtype=torch.float64), np.zeros(3), [0, 0], (0, 0), {}]),
        ("with_global", with_function, [alone, with_array, enclosed(1), enclosed(2)]),
        ("log", with_imported, [torch.log, torch.exp, np.log, torch.log2]),
        ("scale", with_global, [1, 1.0, True, "1", None, 1j, torch.float64, {"a": 1}, {"a": 2}, [[1]], [torch.sum], [len]]),
    ],
)  # fmt: skip
def test_every_value_has_its_key(name, function, values, monkeypatch):
    keys = []
    for value in values:
        monkeypatch.setitem(globals(), name, value)
        keys.append(json.dumps(function_key(function)))
    assert len(set(keys)) == len(keys)


def test_enclosed_values_and_defaults_count():
    for make in (enclosed, with_default):
        assert function_key(make(2)) == function_key(make(2)) != function_key(make(3))


def test_a_module_of_one_s_own_counts_by_its_text(tmp_path, monkeypatch):
    helpers, keys = types.ModuleType("helpers"), []
    monkeypatch.setitem(sys.modules, "helpers", helpers)
    helpers.__file__ = str(tmp_path / "helpers.py")
    for text in ("def scaled(p): return p", "def scaled(p): return 2 * p"):
        (tmp_path / "helpers.py").write_text(text)
        keys.append(function_key(lambda p, E, c, k: helpers.scaled(p)))
    assert keys[0] != keys[1]
    inner = function_key(lambda p, E, c, k: order_parameter.density_matrix(p, E)[:, 0, 0])  # of this package
    assert inner["outside"]["order_parameter"] == inspect.getsource(order_parameter)


def test_what_is_taken_from_a_module_of_one_s_own_counts_whenever_it_was_set(tmp_path, monkeypatch):
    helpers, keys = types.ModuleType("helpers"), []
    monkeypatch.setitem(sys.modules, "helpers", helpers)
    helpers.__file__ = str(tmp_path / "helpers.py")
    (tmp_path / "helpers.py").write_text("factor, scaled = 2.0, None")
    for factor, scaled in ((2.0, alone), (3.0, alone), (2.0, with_global)):
        helpers.factor, helpers.scaled = factor, scaled
        keys.append(json.dumps(function_key(lambda p, E, c, k: helpers.scaled(p, E, c, k) * helpers.factor)))
    monkeypatch.setitem(globals(), "scale", 3.0)
    keys.append(json.dumps(function_key(lambda p, E, c, k: helpers.scaled(p, E, c, k) * helpers.factor)))
    assert len(set(keys)) == 4
    helpers.factor = object()
    with pytest.raises(ParameterError, match="uses 'helpers.factor' from outside"):
        function_key(lambda p, E, c, k: helpers.scaled(p, E, c, k) * helpers.factor)


def test_attributes_of_a_function_count(monkeypatch):
    keys = []
    for value in (1.0, 2.0):
        monkeypatch.setattr(alone, "unit", value, raising=False)
        keys.append(function_key(alone))
    assert keys[0] != keys[1]


class Meter:
    """Of one's own: what an object of it holds, or a class attribute, may change at any time."""

    def measure(self, p, E, c, k):
        return scale * p[:, 0]


def test_a_method_is_named_with_its_object_or_refused():
    with pytest.raises(ParameterError, match="'measure' uses 'self' from outside.*Put it into the function"):
        function_key(Meter().measure)


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, functools.partial(alone), [].append, torch.nn.Linear(1, 1), iter([]), Meter, Meter().measure]
)  # fmt: skip
def test_what_cannot_be_described_is_refused(value, monkeypatch):
    monkeypatch.setitem(globals(), "scale", value)
    said = "'with_global' uses 'scale' from outside.*Put it into the function"
    with pytest.raises(ParameterError, match=said) as raised:
        function_key(with_global)
    assert len(str(raised.value)) < 700


@pytest.mark.parametrize("value", [len, functools.partial(alone), [].append, eval("lambda p, E, c, k: p")])
def test_what_has_no_text_is_refused(value):
    with pytest.raises(ParameterError, match="no source text"):
        function_key(value)
