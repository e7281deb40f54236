"""Readers of downloaded archives, one file per kind of data. Each returns arrays or a text."""
