"""Files on disk: atomic writes, locks, hashes, size limits, disk errors."""
