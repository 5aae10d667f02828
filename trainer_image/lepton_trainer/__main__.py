"""`python -m lepton_trainer`: the built-in trainer's command line. The agent has its own, `python -m lepton_trainer.agent`.

This file is copied into images that know nothing of us, too, so that a job that names such an image for `builtin` is told what is missing.
Standard library only, Python >= 3.9.
"""

import sys


def run() -> int:
    try:
        from lepton_trainer.train.cli import main

        return main()
    except ModuleNotFoundError as error:
        print(
            "error: this image cannot run the built-in trainer: Python module {!r} is not in it. Leave trainer.image out, "
            "or name an image made from Lepton's trainer image".format(error.name),
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(run())
