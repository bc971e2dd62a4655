"""What every measurement is given: what is usable, and what is refused."""

import pytest

from phantombook.parameters import check_inputs, chosen_held_out
from phantomlib.contexts import load_contexts
from phantomlib.errors import ContextError, ModelError, ParameterError, PhantomError
from phantomlib.models.language_model import find

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


def test_two_models_of_one_name_are_refused(tmp_path):
    """Both would be ``gpt2-s`` in every result."""
    mine = tmp_path / "gpt2-s"
    mine.symlink_to(find("zoo:neox-s"), target_is_directory=True)
    with pytest.raises(ParameterError, match="both be called 'gpt2-s'. Rename the folder"):
        check_inputs(**(GOOD | {"models": ["zoo:gpt2-s", str(mine)]}))
    renamed = mine.rename(tmp_path / "mine")
    assert check_inputs(**(GOOD | {"models": ["zoo:gpt2-s", str(renamed)]}))


@pytest.mark.parametrize(
    "wrong",
    [[], [0.5, -0.5], [0.0], [float("nan")], [float("inf")], [True], ["1"], 0.5, None, [[1.0]], [-1.0] * 10_000],
)
def test_multiples_that_are_refused(wrong):
    with pytest.raises(ParameterError, match="multiples is .* positive, finite") as caught:
        check_inputs(**GOOD, multiples=wrong)
    assert len(str(caught.value)) < 700
    check_inputs(**GOOD, multiples=[0.5, 2])


@pytest.mark.parametrize(
    "models, given, chosen",
    [
        (["zoo:gpt2-s", "zoo:neox-m"], "", "zoo:llama-s"),
        (["zoo:gpt2-s"], "zoo:gpt2-s-seed1", "zoo:gpt2-s-seed1"),
        (["my/model", "zoo:gpt2-s"], "zoo:llama-s", "zoo:llama-s"),
        (["my/model"], "my/other", "my/other"),
    ],
)
def test_the_held_out_model(models, given, chosen):
    assert chosen_held_out(models, given) == chosen


OWN = ["my/model", "pretrained:smollm2-135m", "a.gguf", "./zoo:gpt2-s"]
ASKED = "models names '{}'.*-p held_out path/to/another.*-p held_out zoo:llama-s"


@pytest.mark.parametrize(
    "models, given, said",
    [
        (["zoo:llama-s", "zoo:gpt2-s"], "", "'zoo:llama-s' is held out, so it cannot be among models"),
        (["my/model"], "my/model", "'my/model' is held out"),
        (["zoo:gpt2-s"], "zoo:lama-s", "no model 'lama-s'"),
        *((["zoo:gpt2-s", own], given, ASKED.format(own)) for own in OWN for given in ("", " ")),
    ],
)
def test_a_held_out_model_that_cannot_be_is_refused(models, given, said):
    with pytest.raises(PhantomError, match=said):
        chosen_held_out(models, given)
