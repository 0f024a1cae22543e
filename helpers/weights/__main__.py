"""python -m helpers.weights NAME...: fetch trained models into data/checkpoints."""

import argparse
import sys

from helpers.weights.fetch import TRAINED, fetch


def main(arguments=None):
    """Fetch what is named, print the paths -> exit status."""
    known = "\n".join(f"  {name:12}{model.what}" for name, model in TRAINED.items())
    parser = argparse.ArgumentParser(
        prog="python -m helpers.weights",
        description="Fetch trained models, once, into data/checkpoints.",
        epilog=f"models:\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", choices=TRAINED, metavar="NAME", help="see below")
    for name in parser.parse_args(arguments).names:
        try:
            print(fetch(name))
        except (OSError, ValueError) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
