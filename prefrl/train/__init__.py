"""Training loops that read as pseudo-code: fit a score to comparisons, relabel a dataset, learn offline."""
