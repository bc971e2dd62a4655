"""Parameters: what text from a command line or a YAML file becomes, and what is refused, quickly and in few words."""

import time
from pathlib import Path

import nbformat
import pytest

from phantombook.parameters import Declared, check_parameters, declared, load_mapping, parse_value
from phantombook.project import read_notebook
from phantomlib.errors import BookError, ParameterError

ROOT = Path(__file__).parents[2]


def fitted(text, kind):
    return check_parameters({"x": parse_value(text)}, {"x": Declared(kind, None)}, "a notebook")["x"]


@pytest.mark.parametrize(
    "text, kind, value",
    [
        ("3", "int", 3),
        ("08", "int", 8),
        ("3", "float", 3.0),
        ("1e-4", "float", 1e-4),
        (".5", "float", 0.5),
        ("-2.", "float", -2.0),
        ("true", "bool", True),
        ("on", "str", "on"),
        ("2026-01-01", "str", "2026-01-01"),
        ("1:30", "str", "1:30"),
        ("1e5", "str", "1e5"),
        ("'a: b'", "str", "a: b"),
        ("zoo:gpt2-s", "str", "zoo:gpt2-s"),
        ('["a", zoo:gpt2-s]', "list[str]", ["a", "zoo:gpt2-s"]),
        ("[1, 1e-3]", "list[float]", [1.0, 1e-3]),
        ("[]", "list[float]", []),
        ("{a: 1}", "dict[str, int]", {"a": 1}),
        ("5", "Optional[int]", 5),
        ("", "str", ""),
    ],
)
def test_values_typed_by_a_user(text, kind, value):
    found = fitted(text, kind)
    assert found == value and type(found) is type(value)
    assert not isinstance(value, list) or [type(one) for one in found] == [type(one) for one in value]


DEEP = "[" * 5000
HOSTILE = {
    "5,000 digits": ("int", "9" * 5000),
    "5,000 digits of a float": ("float", "9" * 5000),
    "more than 64 bits": ("int", str(2**63)),
    "an expression": ("int", "10**400"),
    "an empty whole number": ("int", ""),
    "a fraction": ("int", "2.5"),
    "truth for a number": ("int", "true"),
    "truth for a float": ("float", "True"),
    "not a number": ("float", "nan"),
    "not a number, in YAML": ("float", ".nan"),
    "infinite": ("float", "inf"),
    "infinite by size": ("float", "1e400"),
    "infinite in a list": ("list[float]", "[1, 1e400]"),
    "brackets without end": ("list[float]", DEEP),
    "brackets without end for text": ("str", DEEP),
    "a list for text": ("str", "[a, b]"),
    "text for a list": ("list[str]", "zoo:gpt2-s"),
    "a tagged whole number": ("int", "!!int abc"),
    "a tagged time": ("int", "!!timestamp x"),
    "a tagged time in a list": ("list[int]", "[!!timestamp x]"),
    "an object": ("list[int]", "[!!python/object/apply:os.getcwd []]"),
    "an alias": ("list[list[int]]", "[&a [1], *a]"),
    "an unfinished list": ("list[int]", "[1, 2"),
    "a control character": ("list[int]", "[\x01]"),
}


@pytest.mark.parametrize("kind, text", HOSTILE.values(), ids=HOSTILE)
def test_what_is_refused(kind, text):
    began = time.process_time()
    with pytest.raises(ParameterError) as caught:
        fitted(text, kind)
    assert len(str(caught.value)) < 500 and time.process_time() - began < 5


@pytest.mark.parametrize("value", [True, None, "x", [1], float("nan"), 10**400])
@pytest.mark.parametrize("kind", ["int", "float"])
def test_values_given_in_python_are_checked_too(value, kind):
    with pytest.raises(ParameterError, match=f"needs {kind}"):
        check_parameters({"x": value}, {"x": Declared(kind, 1)}, "a notebook")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES = {
    "a bomb": (BOMB, "repeats"),
    "brackets without end": (f"steps: {DEEP}", "not valid YAML"),
    "not closed": ("steps: [1", "line"),
    "a list": ("- steps", "mapping"),
    "text": ("steps", "mapping"),
    "twice": ("steps: 1\nsteps: 2", "line 2: 'steps' is given twice"),
    "a mapping as a name": ("{a: 1}: 2", "not valid YAML"),
    "a long name twice": (f"{'x' * 100}: 1\n{'x' * 100}: 2", "twice"),
}


@pytest.mark.parametrize("text, words", FILES.values(), ids=FILES)
def test_files_that_are_refused(text, words, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(ParameterError, match=words) as caught:
        load_mapping(tmp_path / "mine.yaml")
    assert len(str(caught.value)) < 500 + len(str(tmp_path)) and time.process_time() - began < 5


@pytest.mark.parametrize("text, said", [("", {}), ("{}", {}), ("01: {steps: 08}", {"01": {"steps": "08"}})])
def test_what_a_file_says(text, said, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    assert load_mapping(tmp_path / "mine.yaml") == said


# ------------------------------------------------------------------------------------------- what notebooks declare


def notebook_with(source):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import os"), cell])


def test_what_a_cell_declares():
    cell = 'steps: int = 3  # how many, steps = budget\nrates: list[float] = [\n  0.1,\n]\nname = "x"'
    wanted = {"steps": ("int", 3), "rates": ("list[float]", [0.1]), "name": ("str", "x")}
    assert declared(notebook_with(cell)) == {name: Declared(*one) for name, one in wanted.items()}
    assert declared(nbformat.v4.new_notebook()) == {}


@pytest.mark.parametrize(
    "line",
    ["import os", "y = print(1)", "a = b = 1", "a, b = 1, 2", "y: int", "y[0] = 1", "print(y)", "y = (", "y += 1"],
)
def test_a_cell_that_does_more_than_declare_is_an_error(line):
    with pytest.raises(BookError, match="'x'|at its start"):
        declared(notebook_with(f"x: int = 1\n{line}"))


def test_a_type_that_is_unknown_is_an_error():
    with pytest.raises(BookError, match="ndarray"):
        check_parameters({"x": "1"}, {"x": Declared("np.ndarray", 1)}, "a notebook")


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_every_notebook_declares_the_common_parameters(path):
    content = read_notebook(path)
    known = declared(content)
    wanted = {"models": "list[str]", "contexts": "str", "device": "str", "dtype": "str", "store": "str", "seed": "int"}
    assert wanted.items() <= {name: p.type for name, p in known.items()}.items()
    check_parameters({name: p.default for name, p in known.items()}, known, path.stem)  # defaults fit their types

    from papermill.translators import papermill_translators  # papermill itself reads the same, and finds the comments

    (cell,) = [cell for cell in content.cells if "parameters" in cell.metadata.get("tags", ())]
    found = papermill_translators.find_translator("python3", "python").inspect(cell)
    assert {p.name: p.inferred_type_name for p in found} == {name: p.type for name, p in known.items()}
    assert all(p.help for p in found), "every parameter needs its comment"
