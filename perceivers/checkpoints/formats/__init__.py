"""One file per foreign checkpoint format."""
