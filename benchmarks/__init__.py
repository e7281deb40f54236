"""Speed, always as a ratio against something on the same work in the same run."""
