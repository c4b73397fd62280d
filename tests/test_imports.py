# SPDX-License-Identifier: Apache-2.0
"""Who may import what, read from the source itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TORCH_FREE = {"spec", "config", "plugins", "record", "store", "errors", "progress", "cli", "presets", "metrics", "render",
              "cells", "blocks", "reading", "results", "validate", "figures", "importers", "markers", "export", "fresh",
              "regenerate", "contribute"}  # fmt: skip
SUITE_FOR = {
    "recipes": {"spec", "method", "backbone", "data", "views", "optim", "nn", "presets", "errors", "draws"},
    "evaluators": {
        "spec", "backbone", "data", "optim", "bench", "train", "features", "nn", "views", "errors", "metrics", "method",
    },
    "reports": {"spec", "record", "errors", "render", "stats", "kept"},
}  # fmt: skip
NEVER = {
    "recipes": {"recipes", "evaluators", "reports", "lightning_fabric"},
    "evaluators": {"recipes", "reports"},
    "reports": {"recipes", "evaluators", "torch", "torchvision", "timm"},
}


def imports(path: Path) -> set[str]:
    """Modules imported anywhere in a file, outside `if TYPE_CHECKING`."""
    found = set()
    tree = ast.parse(path.read_text())
    hidden = {id(n) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
              for n in ast.walk(node)}  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "suite" else {node.module}
    return found


def test_files_exist_to_be_checked():
    assert len(list((ROOT / "suite").glob("*.py"))) > 10


@pytest.mark.parametrize("package", SUITE_FOR)
def test_plugins_import_only_what_the_table_allows(package):
    for path in (ROOT / package).rglob("*.py"):
        for module in imports(path):
            top, _, rest = module.partition(".")
            assert top not in NEVER[package], f"{path.name} imports {module}"
            if top == "suite":
                assert rest.partition(".")[0] in SUITE_FOR[package], f"{path.name} imports {module}"
            if top == package and package == "evaluators":
                assert rest.startswith(("mm", "_")), f"{path.name} imports {module}: no evaluator imports another"


def test_importing_the_command_line_loads_no_torch():
    modules = ", ".join(f"suite.{name}" for name in sorted(TORCH_FREE))
    heavy = "{'torch', 'timm', 'faiss', 'pandas', 'matplotlib'} & set(sys.modules)"
    code = f"import sys, {modules}, suite.command; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_block_that_recipes_share_is_tested_by_name():
    """A test file imports it itself: what is tested through a recipe alone is not tested."""
    names = {name for path in (ROOT / "recipes").glob("*.py") for name in imports(path) if name.startswith("suite.nn.")}
    tested = {name for path in (ROOT / "tests").glob("test_*.py") for name in imports(path)}
    assert len(names) >= 15 and names <= tested
