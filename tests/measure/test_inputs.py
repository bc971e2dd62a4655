"""What every measurement is given: what is usable, and what is refused."""

import pytest

from phantomlib.errors import ContextError, ModelError, ParameterError
from phantomlib.measure.contexts import load_contexts
from phantomlib.measure.inputs import check_inputs

GOOD = {"models": ["zoo:gpt2-s"], "contexts": "default", "device": "cpu", "dtype": "float32", "store": "x", "seed": 0}


@pytest.mark.parametrize("contexts", ["default", "fitting:default"])
def test_the_contexts_are_handed_back(contexts):
    assert check_inputs(**(GOOD | {"contexts": contexts})) == load_contexts()


@pytest.mark.parametrize(
    "wrong, kind, words",
    [
        ({"models": "zoo:gpt2-s"}, ParameterError, "must be a list"),
        ({"models": []}, ParameterError, "at least one model"),
        ({"models": [" "]}, ParameterError, "at least one model"),
        ({"models": [3]}, ParameterError, "at least one model"),
        ({"models": ["zoo:gpt2-s"] * 2}, ParameterError, "2 times"),
        ({"models": ["zoo:gpt3-s"]}, ModelError, "gpt2-s"),
        ({"models": ["./nowhere"]}, ModelError, "nowhere"),
        ({"models": ["x" * 5000] * 2}, ParameterError, "2 times"),
        ({"contexts": ""}, ParameterError, "contexts is ''"),
        ({"contexts": "nowhere.yaml"}, ContextError, "nowhere.yaml"),
        ({"device": "gpu"}, ParameterError, "device"),
        ({"device": 0}, ParameterError, "device is 0"),
        ({"dtype": "float16"}, ParameterError, "float32, float64"),
        ({"store": " "}, ParameterError, "store is ' '"),
        ({"seed": -1}, ParameterError, "seed is -1"),
        ({"seed": True}, ParameterError, "seed is True"),
        ({"seed": 2**32}, ParameterError, "seed is"),
        ({"seed": 1.0}, ParameterError, "seed is 1.0"),
    ],
)
def test_what_is_refused(wrong, kind, words, tmp_path):
    with pytest.raises(kind, match=words) as caught:
        check_inputs(**(GOOD | wrong))
    assert len(str(caught.value)) < 700
