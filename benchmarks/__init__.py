"""Side-by-side measurements: the engine against what one would otherwise write. Run by ``make bench``."""
