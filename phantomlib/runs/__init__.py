"""Finished runs on disk: the store, published runs, and studies over optimisers and models."""
