"""The names of s3prl's recipes, read from its source: importing s3prl takes seconds."""

from __future__ import annotations

import ast

from distilled_student.common.errors import UserError, did_you_mean
from distilled_student.host.s3prl_names import s3prl_folder


def recipe_names() -> list[str]:
    """``__all__`` of ``s3prl.problem``.

    Raises:
        UserError: s3prl is not installed, or its source does not list the names.
    """
    file = s3prl_folder() / "problem" / "__init__.py"
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise UserError(f"{file}: lists no recipes in __all__")


def check_recipe(name: str) -> None:
    """Raise UserError for an unknown recipe, with the closest one or all."""
    names = recipe_names()
    if name not in names:
        raise UserError(f"{name}: no such recipe{did_you_mean(name, names) or '; choose from ' + ', '.join(names)}")
