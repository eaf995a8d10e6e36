"""Print every setting, or those named; or write the files that list them.

    python -m config.schema [KEY or SECTION ...]    make help-settings KEY=optimizer
    python -m config.schema --write                 make default-yaml: config/default.yaml and docs/settings.md

A name is a key (optimizer.base_lr), its last word (base_lr) or a section (optimizer).
"""

from __future__ import annotations

import argparse
import signal
import sys

from common.cli import EXIT_DONE, Parser, exit_on_mistake
from common.files import write_atomically
from config.recipe import DEFAULTS, ROOT
from config.schema.render import default_yaml, help_text, settings_page

PAGE = ROOT / "docs" / "settings.md"


def main(arguments: list[str]) -> int:
    parser = Parser(
        prog="python -m config.schema", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="settings or sections; all, if there are no names")
    parser.add_argument("--write", action="store_true", help="write config/default.yaml and docs/settings.md")
    options = parser.parse_args(arguments)
    if options.write:
        write_atomically(DEFAULTS, default_yaml())
        write_atomically(PAGE, settings_page())
        return EXIT_DONE
    with exit_on_mistake():
        print(help_text(options.names))
    return EXIT_DONE


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `make help-settings | head` ends quietly
    sys.exit(main(sys.argv[1:]))
