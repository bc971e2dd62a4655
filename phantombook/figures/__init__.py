"""How it is drawn: one visual language for all chapters, and the charts that more than one of them draws."""
