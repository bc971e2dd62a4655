"""Phantom transitions: instrumentation and analysis of fine-tuning near-synonym contexts.

The names of the public face are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:  # for editors and type checkers
    from phantomlib.contexts import Context as Context
    from phantomlib.contexts import load_contexts as load_contexts
    from phantomlib.contexts import resolve as resolve
    from phantomlib.critical.search import critical_rates as critical_rates
    from phantomlib.dataset.scan import scan as scan
    from phantomlib.dataset.watch import ScanCallback as ScanCallback
    from phantomlib.diagnosis import diagnose as diagnose
    from phantomlib.engine.finetune import finetune as finetune
    from phantomlib.engine.recipe import Recipe as Recipe
    from phantomlib.models.language_model import load as load
    from phantomlib.order_parameter import decompose as decompose
    from phantomlib.runs.store import Store as Store
    from phantomlib.runs.study import Study as Study
    from phantomlib.trainer import PhantomCallback as PhantomCallback
    from phantomlib.trainer import SilentFailureWarning as SilentFailureWarning

_HOMES = {
    "Context": "contexts",
    "PhantomCallback": "trainer",
    "Recipe": "engine.recipe",
    "ScanCallback": "dataset.watch",
    "SilentFailureWarning": "trainer",
    "Store": "runs.store",
    "Study": "runs.study",
    "critical_rates": "critical.search",
    "decompose": "order_parameter",
    "diagnose": "diagnosis",
    "finetune": "engine.finetune",
    "load": "models.language_model",
    "load_contexts": "contexts",
    "resolve": "contexts",
    "scan": "dataset.scan",
}
__all__ = [*_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'phantomlib' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(import_module(f"phantomlib.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
