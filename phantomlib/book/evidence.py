"""What the ledger of a profile rests on: the notebooks of its claims, with the parameters that the profile gives them."""

import ast
from pathlib import Path

from phantomlib.book.build import Profile, load_profile
from phantomlib.book.jobs import find_root, notebooks, read_notebook
from phantomlib.book.notebook import FITTING, Notebook
from phantomlib.book.parameters import check_parameters, declared
from phantomlib.ledger.claims import load_claims
from phantomlib.ledger.measurements import Source
from phantomlib.measure.contexts import load_contexts


def expected_sources(root: Path, profile: Profile) -> dict[str, Source]:
    """The sources whose measurements count, by the number of the notebook; those that are not in the project are left out.

    Raises:
        ParameterError: a value of the profile does not fit its notebook.
        ContextError: a contexts file cannot be used.
    """
    found, available = {}, notebooks(root)
    for number in sorted({claim.notebook for claim in load_claims()} & set(available)):
        path = available[number]
        known = declared(read_notebook(path))
        values = {name: _value(one.default) for name, one in known.items()}
        values |= check_parameters(profile.values(number), known, path.stem)
        contexts = values["contexts"].removeprefix(FITTING)
        loaded = load_contexts(contexts if contexts == "default" else root / contexts)
        found[number] = Source(path, values, loaded)
    return found


def expected_beside(nb: Notebook) -> dict[str, Source]:
    """The sources whose measurements belong to the same profile as a notebook; without one, to the same common parameters."""
    root = find_root()
    if nb.profile:
        return expected_sources(root, load_profile(root, nb.profile))
    common = {name: nb.parameters[name] for name in ("models", "contexts", "device", "dtype", "store", "seed")}
    return expected_sources(root, Profile("", common, {}))


def _value(default: str):
    try:
        return ast.literal_eval(default)
    except (ValueError, SyntaxError):
        return default
