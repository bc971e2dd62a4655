"""Phantom transitions: instrumentation and analysis of fine-tuning near-synonym contexts.

The names of the public face are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:  # for editors and type checkers
    from phantomlib.advise.diagnosis import diagnose
    from phantomlib.advise.trainer_callback import PhantomCallback
    from phantomlib.critical.search import critical_rates
    from phantomlib.measure.contexts import load_contexts, resolve
    from phantomlib.measure.finetune import finetune
    from phantomlib.measure.models import load
    from phantomlib.measure.order_parameter import decompose
    from phantomlib.measure.recipe import Recipe
    from phantomlib.measure.store import Store

__all__ = [
    "PhantomCallback",
    "Recipe",
    "Store",
    "critical_rates",
    "decompose",
    "diagnose",
    "finetune",
    "load",
    "load_contexts",
    "resolve",
]

_HOMES = {
    "PhantomCallback": "advise.trainer_callback",
    "Recipe": "measure.recipe",
    "Store": "measure.store",
    "critical_rates": "critical.search",
    "decompose": "measure.order_parameter",
    "diagnose": "advise.diagnosis",
    "finetune": "measure.finetune",
    "load": "measure.models",
    "load_contexts": "measure.contexts",
    "resolve": "measure.contexts",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'phantomlib' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(import_module(f"phantomlib.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
