"""What the checks share: where the binary is, how it is called, how a check reports and exits."""
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OK, FAILED, CANNOT_RUN = 0, 1, 77


def cannot(reason):
    """Ends the check: it could not run, which is neither a pass nor a failure."""
    print(f"skipped: {reason}")
    raise SystemExit(CANNOT_RUN)


class QuantError(Exception):
    """`quant` ended with an error; the message is what it printed on stderr."""


def binary():
    """Path of the binary under test: $QUANT_BIN, else the release build, else the debug build."""
    named = os.environ.get("QUANT_BIN")
    builds = [Path(named)] if named else [ROOT / "target" / kind / "quant" for kind in ("release", "debug")]
    for path in builds:
        if path.is_file():
            return path
    cannot(f"no binary at {' or '.join(map(str, builds))}; run `cargo build --release` or set QUANT_BIN")


def quant(*arguments):
    """Runs `quant` and returns its stdout; raises QuantError when it fails or is killed."""
    command = [binary(), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode:
        said = done.stderr.strip() or "nothing on stderr"
        raise QuantError(f"exit status {done.returncode}: {said}")
    return done.stdout


def convert(source, target, output, *options):
    quant("convert", source, "--to", target, "-o", output, "--threads", 2, *options)
    return Path(output)


def decoded(source, work):
    """A copy in single precision. One of another model is not replaced by `quant`."""
    shutil.rmtree(work / "decoded", ignore_errors=True)
    return convert(source, "hf-f32", work / "decoded")


def presets(container="gguf"):
    """Names of the binary's presets that make GGUF files, or Hugging Face folders (`hf`)."""
    rows = json.loads(quant("list", "presets", "--json"))["presets"]
    return [row["preset"] for row in rows if row["container"] == container]


@dataclass
class Usage:
    wall: float  # seconds
    cpu: float  # seconds, user and system
    resident: int  # highest bytes in memory, pages of mapped files included
    anonymous: int  # highest bytes allocated


def watch(pid):
    """Usage of a child process until it ends; QuantError if it fails. Memory is polled every 10 ms: the system's own maximum
    begins with what Python held when it started the child."""
    start, resident, anonymous = time.perf_counter(), 0, 0
    while True:
        ended, status, used = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        found = dict(re.findall(r"(VmHWM|RssAnon):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()))
        resident = max(resident, int(found.get("VmHWM", 0)) * 1024)
        anonymous = max(anonymous, int(found.get("RssAnon", 0)) * 1024)
        time.sleep(0.01)
    if code := os.waitstatus_to_exitcode(status):
        raise QuantError(f"exit status {code}")  # it said why on stderr
    return Usage(time.perf_counter() - start, used.ru_utime + used.ru_stime, resident, anonymous)


class Report:
    """Rows of a check, printed as they come, and the line of counts at the end."""

    def __init__(self, title, *columns):
        self.title, self.columns = title, columns
        self.counts = {"ok": 0, "FAIL": 0, "skipped": 0}
        print(f"## {title}")
        print(f"| status | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")

    def row(self, status, *cells):
        """One result; status is "ok", "FAIL" or "skipped", or "" for what is only told."""
        if status:
            self.counts[status] += 1
        clean = (re.sub(r"\s+", " ", str(cell)).replace("|", "/") for cell in cells)
        print(f"| {status} | {' | '.join(clean)} |", flush=True)

    def finish(self):
        """Prints the counts and returns the exit status."""
        done = self.counts["ok"] + self.counts["FAIL"]
        print(f"\n{self.title}: {done} checked, {self.counts['ok']} ok, {self.counts['FAIL']} failed, "
              f"{self.counts['skipped']} skipped", flush=True)
        return FAILED if self.counts["FAIL"] else OK if done else CANNOT_RUN


def main(function):
    """Runs a check's main function with a readable end when a package is missing."""
    try:
        sys.exit(function())
    except ModuleNotFoundError as error:
        cannot(f"{error}; run with the Python that tests/interop/env.py prints")
