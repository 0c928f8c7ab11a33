"""Write what is generated from the code, or with --check say what is stale.

docs/schema.md       collections, fields and indexes
docs/schema.graphql  the GraphQL schema
README.md            the table of settings, between its markers
"""

import sys
from pathlib import Path

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
    if stale and "--check" in sys.argv:
        print("run: make docs")
        return 1
    return 0


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
