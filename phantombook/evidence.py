"""What the ledger of a profile rests on: the notebooks of its claims, with the parameters that the profile gives them."""

from pathlib import Path

from phantombook.ledger.claims import load_claims
from phantombook.ledger.measurements import Experiment
from phantombook.notebook import Notebook
from phantombook.plan import make_job
from phantombook.project import Profile, find_root, load_profile, notebooks


def expected_experiments(root: Path, profile: Profile) -> dict[str, Experiment]:
    """The experiments whose measurements count, by the number of the notebook; those that are not in the project are left out.

    Raises:
        ParameterError: a value of the profile does not fit its notebook.
    """
    found = {}
    for number in sorted({claim.notebook for claim in load_claims()} & set(notebooks(root))):
        job = make_job(root, number, {}, profile=profile)
        found[number] = Experiment(job.source, job.all_parameters)
    return found


def expected_beside(nb: Notebook) -> dict[str, Experiment]:
    """The experiments whose measurements belong to the same profile as a notebook; without one, to the same common parameters."""
    root = find_root()
    if nb.profile:
        return expected_experiments(root, load_profile(root, nb.profile))
    common = {name: nb.parameters[name] for name in ("models", "contexts", "device", "dtype", "store", "seed")}
    return expected_experiments(root, Profile("", common, {}))
