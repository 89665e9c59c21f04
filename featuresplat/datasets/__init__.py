"""Readers of scenes on disk: one file, one input layout."""
