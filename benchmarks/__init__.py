"""Speed and memory, always relative to another implementation on the same work in the same run."""
