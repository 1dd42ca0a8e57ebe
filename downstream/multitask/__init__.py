"""The joint downstream for s3prl's runner: one trunk, one linear head per task, alternating updates."""
