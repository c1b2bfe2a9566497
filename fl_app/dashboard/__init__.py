"""``fl-kit dashboard``: a page that starts runs and watches them; they are ordinary jobs."""
