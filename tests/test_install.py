"""What an installation contains, editable or from a wheel, and what ``import distilled_student`` imports."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib import resources
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE_FOLDERS = {
    "upstream/distilled_student": "distilled_student",
    "downstream/multitask": "distilled_student/multitask",
    "configs": "distilled_student/configs",
}
SCRIPTS = ("distilled-student", "run_downstream.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for name in (
        *PACKAGE_FOLDERS,
        "setup.py",
        "pyproject.toml",
        "README.md",
    ):  # a copy, because a build writes into the source tree
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "src" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "src" / name)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    done = subprocess.run(command, cwd=folder / "src", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_contains_every_module_config_and_asset(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in PACKAGE_FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            relative = path.relative_to(ROOT / folder)
            is_page = relative.parts[:2] == ("web", "page")
            if path.suffix in (".py", ".yaml") or (path.is_file() and (relative.parts[0] == "assets" or is_page)):
                assert "__pycache__" in relative.parts or f"{package}/{relative.as_posix()}" in inside
    scripts = next(name for name in inside if name.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(scripts).decode()
    assert all(f"{script} = " in text for script in SCRIPTS)


def test_the_wheel_can_be_imported_alone_and_imports_no_large_libraries(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.meta_path[:] = [f for f in sys.meta_path"
        " if 'Editable' not in getattr(f, '__name__', '')]; import distilled_student;"
        " print(distilled_student.__file__, *({'s3prl', 'transformers', 'lhotse'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "distilled_student" / "__init__.py")


def test_this_installation_has_both_commands_and_the_configs() -> None:
    assert set(SCRIPTS) <= {script.name for script in entry_points(group="console_scripts")}
    assert (Path(str(resources.files("distilled_student.configs"))) / "example.yaml").is_file()
