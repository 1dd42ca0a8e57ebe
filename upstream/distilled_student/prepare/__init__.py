"""Public corpora in the layout that the shipped configs read: fetched where that is allowed, arranged, counted."""
