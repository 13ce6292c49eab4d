"""Who may import whom: a file imports from rows below its own, or inside its own folder."""

import ast
import re
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "pointillist"
ROWS = [
    {"types", "version"},
    {"draws", "engine", "foreign", "strict_yaml"},
    {"layers", "objective", "picture_files", "pictures", "frozen"},
    {"measure"},
    {"samplers", "page", "baselines", "resolution"},
    {"data", "augment", "tasks", "encoders", "losses", "guidance", "metrics"},
    {"consistent"},
    {"models", "figures", "settings", "request", "agreement"},
    {"published", "run"},
    {"runfolder", "known", "snapshots", "posterior", "references"},
    {"walk", "known_points"},
    {"answer"},
    {"convert", "sample", "validation", "describe"},
    {"evaluation"},
    {"reconstruct"},
    {"monitor", "gradient"},
    {"train"},
    {"console", "doctor", "ablate"},
    {"demo"},
    {"cli_words"},
    {"cli_data", "cli_judge", "cli_reconstruct"},
    {"cli", "__init__"},
    {"__main__"},
]


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def row(name: str) -> int:
    return next(i for i, names in enumerate(ROWS) if name in names)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pointillist"):
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return names


def test_every_file_imports_only_from_rows_below_its_own():
    wrong = [
        f"{path.relative_to(SOURCE)} imports {name}"
        for path in SOURCE.rglob("*.py")
        for name in imported(path)
        if name != room(path) and row(name) >= row(room(path))
    ]
    assert not wrong


def test_the_table_of_rows_in_the_documentation_is_this_one():
    page = SOURCE.parents[1] / "docs" / "index.md"
    told = re.findall(r"^\| (\d+) \| (`.*`) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    names = {int(i): set(re.findall(r"`(\w+)/?`", cell)) for i, cell in told}
    assert names == dict(enumerate(ROWS))
    folders = {name for _, cell in told for name in re.findall(r"`(\w+)/`", cell)}
    assert folders == {p.name for p in SOURCE.iterdir() if (p / "__init__.py").exists()}


def test_no_file_outgrows_its_room():
    assert not [p.name for p in SOURCE.rglob("*.py") if len(p.read_text().splitlines()) > 400]


def test_torchvision_is_nowhere():
    assert not [p for p in SOURCE.rglob("*.py") if "import torchvision" in p.read_text()]


def test_public_names_are_listed_once():
    import pointillist

    assert pointillist.__all__ == sorted(set(pointillist.__all__))
    assert all(hasattr(pointillist, name) for name in pointillist.__all__)
