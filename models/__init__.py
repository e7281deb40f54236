"""The import path of the original project, for a plain checkout; `perceivers` is the library."""
