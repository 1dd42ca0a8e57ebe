"""Students on disk: our own folders, and checkpoints of other libraries."""
