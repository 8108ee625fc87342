"""Proves the README's two commands on machines as bare as debootstrap makes them; as root, by hand.

    python3 scripts/check_fresh_machine.py --lend /etc/pip.conf --lend /usr/local/share/ca-certificates

It clones this repository's HEAD into a Debian that has make, and there runs

- bare: `make demo` and `make test`;
- googletest: the same where GoogleTest is installed already;
- refused: both commands where apt-get and the network refuse, at every stage of what may be missing, for
  root and for another user: each must end within 5 seconds and name in one sentence what to do.

pip inside is configured by the same PIP_* variables as outside. Its other configuration, a certificate that
the index needs and a folder of wheels must be lent; nothing inside can change what is lent. What the commands
print goes to a new folder in --logs, a line each and the verdict to stdout.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLONE = "/home/hyenarec"
SHORT = 5.0  # seconds in which a refusal must be there
PATIENCE = 3600.0  # seconds for a command that hangs
NOBODY = "65534:65534"


@dataclass(frozen=True)
class Machine:
    """A Debian in a folder, entered by chroot.

    Attributes:
        folder: Its root.
        lent: Files and folders of this machine that it sees, too, under the same names.
    """

    folder: Path
    lent: tuple[Path, ...]

    def run(self, command: str, log: Path, *, user: str = "0:0", network: bool = True) -> tuple[int, float]:
        """Runs a shell command in the clone, its output into the log; returns status and seconds."""
        inside = ["chroot", f"--userspec={user}", str(self.folder), "sh", "-c", f"cd {CLONE}; {command}"]
        script = "; ".join([*self._mounts(), f"exec {shlex.join(inside)}"])
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", *([] if network else ["--net"])]
        variables = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        variables |= {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        start = time.monotonic()
        with log.open("a") as output:
            done = subprocess.run(
                [*unshare, "sh", "-ec", script],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE,
                check=False,
            )
        return done.returncode, time.monotonic() - start

    def _mounts(self) -> list[str]:
        mounts = [f"mount -t proc proc {self.folder}/proc"]
        for path in self.lent:
            target = self.folder / path.relative_to("/")
            if path.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
            mounts.append(shlex.join(["mount", "--bind", str(path), str(target)]))
            mounts.append(shlex.join(["mount", "-o", "remount,bind,ro", str(target)]))
        return mounts

    def copy(self, name: str) -> Machine:
        """Another machine with the same content."""
        folder = self.folder.with_name(name)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["cp", "--archive", str(self.folder), str(folder)], check=True)
        return Machine(folder, self.lent)

    def install(self, packages: list[str], log: Path) -> None:
        """Installs Debian packages, and clears apt-get's cache: without network it must not find them."""
        quiet = "DEBIAN_FRONTEND=noninteractive apt-get -qq"
        install = f"{quiet} install --yes --no-install-recommends {' '.join(packages)}"
        status, _ = self.run(f"{quiet} update && {install} && apt-get clean", log)
        if status != 0:
            raise SystemExit(f"apt-get could not install {packages}, see {log}")


def debian_packages() -> dict[str, str]:
    """The Debian package of each piece in requirements/system.txt."""
    lines = (ROOT / "requirements" / "system.txt").read_text().splitlines()
    return {piece: package for piece, package, *_ in (line.split() for line in lines if line[0] != "#")}


def bootstrap(folder: Path, suite: str, lent: tuple[Path, ...], logs: Path) -> Machine:
    """Debian's minimal base with make and a clone of HEAD."""
    machine = Machine(folder / "base", lent)
    with (logs / "debootstrap.log").open("w") as output:
        command = ["debootstrap", "--variant=minbase", suite, str(machine.folder)]
        subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=True)
    for name in ("/etc/resolv.conf", "/etc/hosts"):
        shutil.copy(name, machine.folder / name.lstrip("/"))
    inside = machine.folder / CLONE.lstrip("/")
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(inside)], check=True)
    machine.install(["make"], logs / "base.log")
    return machine


def both_commands(machine: Machine, situation: str, logs: Path) -> list[str]:
    """Runs `make demo` and `make test` in turn; returns a line for each that failed."""
    failures = []
    for command in ("make demo", "make test"):
        log = logs / f"{situation}-{command.replace(' ', '-')}.log"
        status, seconds = machine.run(command, log)
        verdict = "passed" if status == 0 else f"FAILED with status {status}, see {log}"
        print(f"{situation}: {command} {verdict} in {seconds:.0f} s", flush=True)
        if status != 0:
            failures.append(f"{situation}: {command}")
    return failures


def refusals(machine: Machine, situation: str, commands: list[str], logs: Path) -> list[str]:
    """Runs the commands without network; returns a line for each that was slow, or not one sentence."""
    failures = []
    for user, who in (("0:0", "root"), (NOBODY, "nobody")):
        for command in commands:
            log = logs / f"refused-{situation}-{who}-{command.replace(' ', '-')}.log".replace("/", "-")
            status, seconds = machine.run(command, log, user=user, network=False)
            lines = log.read_text().splitlines()
            sentences = [line for line in lines if line.startswith("hyenarec needs ")]
            others = [line for line in lines if not line.startswith(("hyenarec needs ", "make: "))]
            announced = all(line.startswith(("Installing with apt-get ", "Fetching ")) for line in others)
            good = status != 0 and seconds <= SHORT and len(sentences) == 1 and announced
            print(f"refused, {situation}, {who}: {command}: {seconds:.1f} s", *lines, sep="\n  ", flush=True)
            if not good:
                failures.append(f"refused, {situation}, {who}: {command}")
    return failures


def refused(base: Machine, logs: Path) -> list[str]:
    """Every stage of what may be missing: all of it, GoogleTest, nothing but Python's packages."""
    machine = base.copy("refused")
    machine.run(f"chown --recursive {NOBODY} {CLONE}", logs / "refused.log")
    failures = refusals(machine, "a bare machine", ["make demo", "make test"], logs)
    packages = debian_packages()
    googletest = packages.pop("googletest")
    machine.install(list(packages.values()), logs / "refused.log")
    failures += refusals(machine, "no GoogleTest", ["make test"], logs)
    failures += refusals(machine, "no package index", ["make demo"], logs)
    machine.install([googletest], logs / "refused.log")
    return failures + refusals(machine, "no package index but GoogleTest", ["make test"], logs)


def lent_path(text: str) -> Path:
    """The absolute path of what is to be lent."""
    try:
        return Path(text).resolve(strict=True)
    except OSError:
        raise argparse.ArgumentTypeError(f"must be there, got '{text}'") from None


def main() -> int:
    """Runs the situations; 1 if one failed."""
    parser = argparse.ArgumentParser(description="make demo and make test on bare Debians.")
    parser.add_argument("--suite", default="bookworm", help="Debian's release")
    help_lend = "file or folder of this machine that the others see, too; may be repeated"
    parser.add_argument("--lend", type=lent_path, action="append", default=[], help=help_lend)
    parser.add_argument("--only", choices=["bare", "googletest", "refused"], help="one situation")
    parser.add_argument("--logs", type=Path, default=ROOT / "build" / "fresh_machine")
    arguments = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        sys.exit("check_fresh_machine.py needs root and debootstrap: sudo apt-get install debootstrap")
    logs = arguments.logs / time.strftime("%Y-%m-%d-%H-%M-%S")
    logs.mkdir(parents=True)

    failures = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # other users must reach the machines
        base = bootstrap(folder, arguments.suite, tuple(arguments.lend), logs)
        wanted = [arguments.only] if arguments.only else ["refused", "bare", "googletest"]
        if "refused" in wanted:
            failures += refused(base, logs)
        if "bare" in wanted:
            failures += both_commands(base.copy("bare"), "bare", logs)
        if "googletest" in wanted:
            machine = base.copy("googletest")
            machine.install([debian_packages()["googletest"]], logs / "googletest.log")
            failures += both_commands(machine, "googletest", logs)
    print(f"fresh machine FAILED: {'; '.join(failures)}" if failures else "fresh machine passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
