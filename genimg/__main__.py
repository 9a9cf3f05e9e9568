"""The ``genimg`` command, also where only torch is installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> int:
    """Runs the command line, and returns its exit code.

    ``genimg info`` needs torch alone; all else needs the ``train`` extra.
    """
    arguments = sys.argv[1:]
    if find_spec("click") is None:
        if arguments[:1] == ["info"]:
            from genimg import info

            return info.main(arguments[1:])
        print('genimg: this needs more packages: pip install "genimg[train]"', file=sys.stderr)
        return 2
    from genimg import cli

    return cli.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
