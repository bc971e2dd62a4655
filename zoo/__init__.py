"""How the shipped models were made: a language of known probabilities, and one recipe for all models."""
