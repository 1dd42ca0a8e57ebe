"""The parts of ``distilled-student speed``; alone in a module, so that names are checked before torch is imported."""

PART_NAMES = ("models", "distillation", "joint", "startup", "streaming", "shipped")
