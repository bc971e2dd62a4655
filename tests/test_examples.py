"""Every name of the public face has an example in its docstring, and the examples are true."""

import doctest

import pytest

import phantomlib


@pytest.mark.parametrize("name", phantomlib.__all__)
def test_the_example_in_the_docstring_runs(name):
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(phantomlib, name), name, globs={})
    assert example.examples, f"{name} has no example"
    found = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=found.append)
    assert result.failed == 0, "".join(found)
