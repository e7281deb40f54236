"""Records on disk: detecting what a path holds, and turning each record into what a model takes. One file per kind of data."""
