"""Phantom transitions: instrumentation and analysis of fine-tuning near-synonym contexts."""

__version__ = "0.1.0"
