"""Four options of one's own, a file each."""
