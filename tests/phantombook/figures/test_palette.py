"""Colours that everyone can tell apart, and that mean one thing."""

from types import SimpleNamespace

import matplotlib as mpl
import numpy as np

from phantombook.figures import palette

OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}


def lightness(colour) -> float:
    """Relative luminance, as in WCAG 2."""
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in mpl.colors.to_rgb(colour)]
    return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]


def test_what_has_a_meaning_has_a_colour_of_its_own():
    parts = [palette.CORRECT, palette.COMPETITOR, palette.SIGNAL, palette.DRAG, palette.PHI, palette.LOSS]
    assert len(set(parts)) == len(parts) and set(parts) <= OKABE_ITO
    assert set(palette.FAMILIES.values()) <= OKABE_ITO and len(set(palette.FAMILIES.values())) == len(palette.FAMILIES)


def test_a_family_is_a_hue_and_a_larger_model_is_darker():
    models = [
        SimpleNamespace(name=f"{family}-{n}", model_type=family, n_parameters=n)
        for family in ("gpt2", "gpt_neox")
        for n in (3, 1, 2)
    ]
    colours = palette.model_colours(models)
    for family in ("gpt2", "gpt_neox"):
        shades = [lightness(colours[f"{family}-{n}"]) for n in (1, 2, 3)]
        assert shades == sorted(shades, reverse=True)
        steps = np.diff(116 * np.cbrt(shades))  # in L* of CIELAB, where a step of one can just be seen
        assert np.all(np.abs(steps) > 18)
    alone = palette.model_colours([SimpleNamespace(name="x", model_type="llama", n_parameters=1)])
    assert mpl.colors.to_hex(alone["x"]).upper() == palette.FAMILIES["llama"]
    strange = palette.model_colours([SimpleNamespace(name="y", model_type="unheard of", n_parameters=1)])
    assert mpl.colors.to_hex(strange["y"]).upper() == palette.OTHER_FAMILY
