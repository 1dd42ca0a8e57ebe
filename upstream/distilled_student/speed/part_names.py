"""The parts of ``distilled-student speed``, in a module of their own: their names are checked before torch is imported."""

PART_NAMES = ("models", "distillation", "joint", "startup", "streaming")
