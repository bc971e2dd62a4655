"""How it is drawn: one visual language for all chapters."""
