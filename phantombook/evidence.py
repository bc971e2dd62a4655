"""What the ledger of a profile rests on: the notebooks of its claims, with the parameters that the profile gives them."""

from pathlib import Path

from phantombook.ledger.claims import load_claims
from phantombook.ledger.measurements import Experiment
from phantombook.plan import make_job
from phantombook.project import Profile, notebooks


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
