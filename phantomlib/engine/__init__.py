"""The fine-tuning engine: many replicas advanced together, everything measured at every step."""
