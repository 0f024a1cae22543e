"""What `make test` does: ruff, the unit tests, every notebook against its outputs; one summary.

    python tools/test_all.py            all of it
    python tools/test_all.py --quick    what `make check` does, for one who edits: under a minute

All checks run even if an earlier one fails; the exit status is 1 if any did.
"""

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Two to four processes with one thread each finish sooner than one process with many threads: the
# models are small. A file, so a notebook too, stays in one process.
PARALLEL = ["-n", "auto", "--maxprocesses=4", "--dist=loadfile"]
SLOW = ["--durations=15", "--durations-min=2"]  # the slowest are named below the dots
CHECKS = {
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "."],
    "unit tests": ["pytest", *PARALLEL, *SLOW, "tests"],
    "notebooks": ["pytest", *PARALLEL, *SLOW, "--nbval", "notebooks"],
}
# The model against its peers, the notebook's loop against fit, the rules of notebooks and rooms.
FIRST = [f"tests/test_{name}.py" for name in ("model", "notebook_10", "notebooks", "rooms")]
QUICK = CHECKS | {"unit tests": ["pytest", *PARALLEL, *SLOW, *FIRST]}
del QUICK["notebooks"]


def counts(report):
    """pytest's XML report -> (passed, failed, skipped).

    A broken collection counts as failed, and so does a cell that nbval "expected to fail" because
    one before it ran too long.
    """
    suite = ElementTree.parse(report).find("testsuite")
    expected = len(suite.findall("testcase/skipped[@type='pytest.xfail']"))
    failed = int(suite.get("failures")) + int(suite.get("errors")) + expected
    skipped = int(suite.get("skipped")) - expected
    return int(suite.get("tests")) - failed - skipped, failed, skipped


def check(arguments, root=ROOT):
    """Run one tool, its words going straight through -> (passed, failed, skipped)."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        extra = [f"--junitxml={report}"] if arguments[0] == "pytest" else []
        code = subprocess.run([sys.executable, "-m", *arguments, *extra], cwd=root).returncode
        passed, failed, skipped = counts(report) if report.exists() else (int(code == 0), 0, 0)
    return passed, max(failed, int(code != 0)), skipped


def main():
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = []
    for name, arguments in (QUICK if "--quick" in sys.argv[1:] else CHECKS).items():
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        rows.append((name, *check(arguments), time.perf_counter() - start))

    print("\ncheck        result  passed  failed  skipped  seconds")
    for name, passed, failed, skipped, seconds in rows:
        result = "FAILED" if failed else "ok"
        print(f"{name:11}  {result:6}  {passed:6}  {failed:6}  {skipped:7}  {seconds:7.1f}")
    passed, failed, skipped = (sum(row[i] for row in rows) for i in (1, 2, 3))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
