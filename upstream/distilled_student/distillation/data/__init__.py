"""Audio for distillation: folders, manifests and shards, cut into pieces and grouped into batches."""
