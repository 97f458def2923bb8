"""Stage one with several Ray workers, on this machine or a cluster."""
