"""`python -m lepton_trainer`: the built-in trainer's command line. The agent has its own, `python -m lepton_trainer.agent`."""

import sys

from lepton_trainer.train.cli import main

if __name__ == "__main__":
    sys.exit(main())
