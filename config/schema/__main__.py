"""Print the settings, or write the files that list them.

python -m config.schema [KEY or SECTION ...]    make help-settings KEY=optimizer
python -m config.schema --write                 make default-yaml: config/default.yaml and docs/settings.md
"""

from __future__ import annotations

import sys

from common.files import write_atomically
from config.errors import ConfigError
from config.recipe import DEFAULTS, ROOT
from config.schema.render import default_yaml, help_text, settings_page

PAGE = ROOT / "docs" / "settings.md"


def main(arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
    elif arguments == ["--write"]:
        write_atomically(DEFAULTS, default_yaml())
        write_atomically(PAGE, settings_page())
    else:
        print(help_text(arguments))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ConfigError as error:
        print(f"swave: {error}", file=sys.stderr)
        sys.exit(2)
