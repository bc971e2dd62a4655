"""Colours, one meaning each through the whole book; all from the colour-blind-safe set of Okabe and Ito."""

import matplotlib as mpl
import numpy as np

CORRECT, COMPETITOR = "#0072B2", "#D55E00"
SIGNAL, DRAG, PHI = "#009E73", "#CC79A7", "#000000"
LOSS, REFERENCE = "#56B4E9", "#7F7F7F"
CONTROL = "#000000"  # the double well, which does have two branches
# by transformers' model type
FAMILIES = {"gpt2": "#0072B2", "gpt_neox": "#D55E00", "llama": "#009E73", "opt": "#CC79A7"}
OTHER_FAMILY = "#4D4D4D"


def model_colours(models) -> dict[str, tuple]:
    """A colour for each loaded model by name: its family's hue, darker the larger it is within the family."""
    colours: dict[str, tuple] = {}
    for family in dict.fromkeys(m.model_type for m in models):
        members = sorted((m for m in models if m.model_type == family), key=lambda m: m.n_parameters)
        hue = FAMILIES.get(family, OTHER_FAMILY)
        pure = np.array(mpl.colors.to_rgb(hue))
        ramp = mpl.colors.LinearSegmentedColormap.from_list("", [0.5 + 0.5 * pure, pure, 0.5 * pure])  # light to dark
        places = np.linspace(0, 1, max(3, len(members)))[: len(members)] if len(members) > 1 else [0.5]
        colours |= {m.name: tuple(ramp(place)[:3]) for m, place in zip(members, places, strict=True)}
    return colours
