"""Finished runs on disk: the store, and studies over optimisers and models."""
