"""Data sets that come along: of scikit-learn, drawn by the seed, and vendored files."""
