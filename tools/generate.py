"""Write what is generated from the code, or with --check say what is stale.

docs/schema.md       collections, fields and indexes
docs/schema.graphql  the GraphQL schema
docs/audit.md        the table of actions, between its markers
README.md            the table of settings, between its markers

--check also says which dependency of pyproject.toml its lock does not pin:
`make lock` does that, for it asks a registry.
"""

import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from ximler.app import schema
from ximler.audit.actions import Action
from ximler.core import settings
from ximler.database.describe import markdown

ROOT = Path(__file__).resolve().parent.parent


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
    return {
        ROOT / "docs" / "schema.md": markdown(),
        ROOT / "docs" / "schema.graphql": schema().sdl() + "\n",
        ROOT / "docs" / "audit.md": _between(ROOT / "docs" / "audit.md", "actions", _actions()),
        ROOT / "README.md": _between(ROOT / "README.md", "settings", _settings()),
    }


def _between(path: Path, name: str, rows: list[str]) -> str:
    """The file, with the rows between its markers `<!-- name -->` and `<!-- /name -->`."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, rest = path.read_text("utf-8").split(begin)
    _, after = rest.split(end)
    return before + begin + "\n".join(rows) + "\n" + end + after


def _settings() -> list[str]:
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for variable, default, meaning in settings.documentation():
        rows.append(f"| `{variable}` | {f'`{default}`' if default else ''} | {meaning} |")
    return rows


def _actions() -> list[str]:
    return ["| action | meaning |", "|---|---|", *(f"| `{action}` | {action.meaning} |" for action in Action)]


if __name__ == "__main__":
    sys.exit(main())
