"""What the ledger of a profile rests on: the notebooks of its claims, with the parameters that the profile gives them."""

from pathlib import Path

from phantombook.inputs import FITTING
from phantombook.ledger.claims import load_claims
from phantombook.ledger.measurements import Source
from phantombook.notebook import Notebook
from phantombook.plan import make_job
from phantombook.project import Profile, find_root, load_profile, notebooks
from phantomlib.contexts import load_contexts


def expected_sources(root: Path, profile: Profile) -> dict[str, Source]:
    """The sources whose measurements count, by the number of the notebook; those that are not in the project are left out.

    Raises:
        ParameterError: a value of the profile does not fit its notebook.
        ContextError: a contexts file cannot be used.
    """
    found = {}
    for number in sorted({claim.notebook for claim in load_claims()} & set(notebooks(root))):
        job = make_job(root, number, {}, profile=profile)
        contexts = job.all_parameters["contexts"].removeprefix(FITTING)
        loaded = load_contexts(contexts if contexts == "default" else root / contexts)
        found[number] = Source(job.source, job.all_parameters, loaded)
    return found


def expected_beside(nb: Notebook) -> dict[str, Source]:
    """The sources whose measurements belong to the same profile as a notebook; without one, to the same common parameters."""
    root = find_root()
    if nb.profile:
        return expected_sources(root, load_profile(root, nb.profile))
    common = {name: nb.parameters[name] for name in ("models", "contexts", "device", "dtype", "store", "seed")}
    return expected_sources(root, Profile("", common, {}))
