"""Audio for distillation: folders, manifests and shards, cut and grouped into batches."""
