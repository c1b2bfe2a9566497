"""Models: named arrays that learn from rows and predict."""
