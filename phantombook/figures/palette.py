"""Colours, one meaning each through the whole book; all from the colour-blind-safe set of Okabe and Ito."""

import matplotlib as mpl
import seaborn as sns

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
        shades = sns.light_palette(hue, n_colors=len(members) + 2)[2:] if len(members) > 1 else [mpl.colors.to_rgb(hue)]
        colours |= {m.name: shade for m, shade in zip(members, shades, strict=True)}
    return colours
