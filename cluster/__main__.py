"""The command line: `python3 -m cluster up`, `down`, `status`, and so on; see `--help`."""

import argparse
import json
import os
import sys
import time

from cluster import gotools, images, nodes, prepare, prometheus, status, substrate
from cluster.places import AUDIT_LOG, locked
from cluster.terminal import Refused, say


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="python3 -m cluster", description="A real Kubernetes for development and tests, and our images.")
    commands = top.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="bring the cluster up: the one named in LEPTON_KUBECONFIG, else kind, else an embedded node")
    up.add_argument(
        "--fake-nodes", type=int, default=int(os.environ.get("KWOK_NODES", "0")), help="kwok nodes besides (default: KWOK_NODES)"
    )
    down = commands.add_parser("down", help="take it down; images and certificates stay for a quick next start")
    down.add_argument("--purge", action="store_true", help="forget those, too")
    commands.add_parser("status", help="what runs, and what it uses")
    commands.add_parser("prepare", help="build and fetch beforehand all that up and images need, side by side")
    commands.add_parser("kubeconfig", help="print the path of the kubeconfig")
    commands.add_parser("audit-log", help="print the path of the API server's audit log (writes only)")
    load = commands.add_parser("images", help="build our images, bring them into the cluster, and print their names as JSON")
    load.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(images.TARGETS)} (default: both)")
    push = commands.add_parser("push", help="build our images and push them to a registry")
    push.add_argument("registry", help="such as example.org/team")
    push.add_argument("--tag", help="default: the project's version")
    tool = commands.add_parser("tool", help="print the path of a tool, which is built when it is not there yet")
    tool.add_argument("name", choices=[*gotools.COMMANDS, *gotools.COMPONENTS])
    fake = commands.add_parser("nodes", help="have exactly N fake nodes")
    fake.add_argument("--fake", type=int, required=True, metavar="N")
    watch = commands.add_parser("prometheus", help="start or stop a real Prometheus that scrapes the annotated pods")
    watch.add_argument("action", choices=["start", "stop"])
    watch.add_argument("--port", type=int, default=prometheus.PORT)
    return top


def run(arguments: argparse.Namespace) -> None:
    """Carry out one command. Answers go to stdout, the story to stderr."""
    match arguments.command:
        case "up":
            with locked("cluster"):
                substrate.up()
                if arguments.fake_nodes:
                    nodes.fake(arguments.fake_nodes)
            say(f"up: export KUBECONFIG={substrate.kubeconfig()}")
        case "down":
            with locked("cluster"):
                substrate.down(arguments.purge)
        case "status":
            print(status.text())
        case "prepare":
            prepare.everything()
        case "kubeconfig":
            print(substrate.kubeconfig())
        case "audit-log":
            if substrate.choose() != substrate.EMBEDDED:
                raise Refused("only the embedded cluster keeps an audit log that can be read from here")
            print(AUDIT_LOG)
        case "images":
            if unknown := set(arguments.targets) - set(images.TARGETS):
                raise Refused(f"no image is called {', '.join(sorted(unknown))}; there are: {', '.join(images.TARGETS)}")
            print(json.dumps(images.load(tuple(arguments.targets) or images.TARGETS)))
        case "push":
            print("\n".join(images.push(arguments.registry, arguments.tag)))
        case "tool":
            print(gotools.tool(arguments.name))
        case "nodes":
            nodes.fake(arguments.fake)
        case "prometheus":
            if arguments.action == "start":
                print(prometheus.start(port=arguments.port).url)
            else:
                prometheus.stop()


def main() -> int:
    """Returns the exit status: 1 where it can't work, with the reason on stderr."""
    arguments = parser().parse_args()
    started = time.monotonic()
    try:
        run(arguments)
    except Refused as refusal:
        say(f"cluster: {refusal}")
        if arguments.command in ("up", "images"):
            say("Without a cluster: `lepton run JOB.yaml --local` runs the same manifest as processes of this machine, without root.")
        return 1
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        return 130
    if arguments.command in ("up", "down", "images", "prepare"):
        say(f"{arguments.command}: {time.monotonic() - started:.1f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
