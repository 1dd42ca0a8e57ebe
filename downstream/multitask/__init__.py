"""The joint downstream for s3prl's runner: one upstream, one linear head per task, alternating updates."""
