"""The report of a run, or of several runs side by side, from what they have written so far.

.venv/bin/python -m evaluation.report runs/demo
.venv/bin/python -m evaluation.report runs/a runs/b --out both.html
"""

from __future__ import annotations

import sys
from pathlib import Path

from common.cli import EXIT_MISTAKE, Parser, print_error
from evaluation.arguments import check_out


def main(arguments: list[str]) -> int:
    parser = Parser("python -m evaluation.report", __doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="directories of runs")
    parser.add_argument("--out", type=Path, help="default: report.html of the run; of several runs, report.html here")
    options = parser.parse_args(arguments)
    out = options.out or (options.runs[0] / "report.html" if len(options.runs) == 1 else Path("report.html"))
    for run in options.runs:
        if not (run / "metrics.jsonl").is_file():
            print_error(f"{run}: no metrics.jsonl there; give a run's directory")
            return EXIT_MISTAKE
    from evaluation.report.run_page import write_page

    try:
        check_out("--out", out)
        write_page(options.runs, out)
    except (ValueError, OSError) as error:
        print_error(error)
        return EXIT_MISTAKE
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
