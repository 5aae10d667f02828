"""`python -m lepton_trainer.agent -- CMD ARG...` runs an agent; `python -m lepton_trainer.agent install DIR` copies what it is made of.

The folder itself can be run too (`python3 /opt/lepton/lepton_trainer/agent -- CMD`), where it was only copied into an image.
"""

import os
import sys

if not __package__:  # run as a folder: our package goes last, so that an installed one wins
    del sys.path[0]
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))


elif not getattr(sys.flags, "safe_path", False) and sys.path and sys.path[0] in ("", os.getcwd()):
    del sys.path[0]  # `-m` put the working directory there: a user's queue.py is not ours to import


def main(arguments: "list[str]") -> int:
    if len(arguments) == 2 and arguments[0] == "install":
        from lepton_trainer.agent.install import InstallError, install

        try:
            install(arguments[1])
        except InstallError as error:
            print(f"lepton agent: {error}", file=sys.stderr)
            return 1
        return 0
    if not arguments or arguments[0] != "--":
        print("usage: python -m lepton_trainer.agent -- COMMAND [ARGUMENT...]", file=sys.stderr)
        print("       python -m lepton_trainer.agent install DIR", file=sys.stderr)
        return 2
    from lepton_trainer.agent import supervisor
    from lepton_trainer.agent.settings import SettingsError, read

    try:
        settings = read(os.environ, arguments[1:])
    except SettingsError as error:
        print(f"lepton agent: {error}", file=sys.stderr)
        return 2
    return supervisor.run(settings, os.environ)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
