"""Write what is generated from the code, or with --check say what is stale.

docs/schema.md       collections, fields and indexes
docs/schema.graphql  the GraphQL schema
README.md            the table of settings, between its markers

--check also says which dependency of pyproject.toml its lock does not pin: `make lock` does that, for it asks a registry.
"""

import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from ximler.app import schema
from ximler.core import settings
from ximler.database.describe import markdown

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- settings -->\n", "<!-- /settings -->\n"


def main() -> int:
    stale = []
    for path, text in generated().items():
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(path)
            if "--check" not in sys.argv:
                path.write_text(text, "utf-8")
    for path in stale:
        print(f"{'stale' if '--check' in sys.argv else 'written'}: {path.relative_to(ROOT)}")
    if "--check" not in sys.argv:
        return 0
    if stale:
        print("run: make docs")
    unlocked = not_locked()
    for lock, requirement in unlocked:
        print(f"{lock} does not pin {requirement}")
    if unlocked:
        print("run: make lock")
    return int(bool(stale or unlocked))


def not_locked() -> list[tuple[str, str]]:
    """Each lock that lacks a version in the range that pyproject.toml gives, and that range."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras, groups = project["project"]["optional-dependencies"], project["dependency-groups"]
    run = [*project["project"]["dependencies"], *extras["embedded"]]
    lacking = []
    for lock, wanted in (
        ("requirements.lock", run),
        ("requirements-dev.lock", [*run, *groups["dev"]]),
        ("requirements-bench.lock", groups["bench"]),
    ):
        pins = dict(
            re.findall(r"^([a-z0-9.-]+)(?:\[[^]]*\])?==([^ ;\\]+)", (ROOT / lock).read_text("utf-8"), re.MULTILINE)
        )
        for text in wanted:
            requirement = Requirement(text)
            pin = pins.get(requirement.name.lower().replace("_", "-"))
            if pin is None or not requirement.specifier.contains(pin, prereleases=True):
                lacking.append((lock, text))
    return lacking


def generated() -> dict[Path, str]:
    readme = (ROOT / "README.md").read_text("utf-8")
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return {
        ROOT / "docs" / "schema.md": markdown(),
        ROOT / "docs" / "schema.graphql": schema().sdl() + "\n",
        ROOT / "README.md": before + BEGIN + settings_table() + END + after,
    }


def settings_table() -> str:
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for variable, default, meaning in settings.documentation():
        rows.append(f"| `{variable}` | {f'`{default}`' if default else ''} | {meaning} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(main())
