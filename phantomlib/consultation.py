"""From the words of a user to a diagnosis: find the sentence, load the model, propose a competitor where none is given."""

import tempfile
from pathlib import Path

from phantomlib.contexts import Context, load_contexts, resolve
from phantomlib.diagnosis import Check, Diagnosis, Proposal, check_diagnosis, diagnose, propose
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError, did_you_mean
from phantomlib.models.language_model import load
from phantomlib.runs.store import Store


def chosen_context(
    context: str | None, contexts: str, prompt: str | None, correct: str | None, competitor: str | None
) -> Context:
    """The context with an id, or one of a prompt and words; without a competitor that word is empty.

    Raises:
        ParameterError: neither or both are given, there is no such context, or both words are the same.
        ContextError: the contexts file cannot be used.
    """
    if context is not None:
        if prompt or correct or competitor:
            raise ParameterError("Give either --context, or --prompt with --correct (and --competitor), not both.")
        found = {c.id: c for c in load_contexts(contexts)}
        if context not in found:
            near = did_you_mean(context, found)
            raise ParameterError(f"'{contexts}' has no context '{context}'{near}. It has {', '.join(found)}.")
        return found[context]
    if not (prompt and prompt.strip() and correct and correct.strip()):
        raise ParameterError("Say what is to be learnt: --context ID, or --prompt TEXT with --correct WORD.")
    if correct.strip() == (competitor or "").strip():
        raise ParameterError(f"correct and competitor are both '{correct}'; choose two different words.")
    return Context("given", prompt, correct, competitor or "")


def consult(
    ref: str, chosen: Context, recipe: Recipe, learning_rate: float | None, store: Path | None, check: bool, **options
) -> tuple[Diagnosis, Check | None, list[Proposal]]:
    """Diagnose one fine-tune and, if asked to ``check``, run it.

    Args:
        ref: which model, as in :func:`phantomlib.models.language_model.load`, which takes ``options`` too.
        chosen: what is to be learnt; if it has no competitor, the first that the model proposes is taken.
        recipe: optimiser, method and number of steps.
        learning_rate: to be judged; None if there is none.
        store: folder in which the runs of the check are kept; None to forget them.
        check: whether to run the fine-tune.

    Raises:
        StoreError, ModelError, ContextError, ParameterError: something given cannot be used.
    """
    kept = None if store is None else Store(store)
    model, proposals, outcome = load(ref, **options), [], None
    if not chosen.competitor:
        proposals = propose(model, chosen.prompt, chosen.correct)
        chosen = Context(chosen.id, chosen.prompt, chosen.correct, proposals[0].word)
    context = resolve(chosen, model.tokenizer)
    result = diagnose(model, context, recipe, learning_rate)
    if check:
        with tempfile.TemporaryDirectory(prefix="phantom-") as scratch:
            outcome = check_diagnosis(model, context, recipe, result, kept or Store(scratch))
    return result, outcome, proposals
