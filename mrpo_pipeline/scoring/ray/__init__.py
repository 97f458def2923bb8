"""Stage one on many workers, by Ray."""
