"""Students on disk: our own folders, and the formats of other libraries."""
