#!/bin/sh
# Makes .venv, once; the Makefile calls this. What goes wrong is said in one line, with what to do.
#   PYTHON=...       the interpreter to take, instead of looking for one
#   TORCH_INDEX=...  one more package index: PyTorch's own has the smaller CPU-only build
# The last step writes .venv/.complete. Without it the next call starts afresh.
set -u
cd "$(dirname "$0")/.." || exit 1
unset PYTHONHOME PYTHONPATH

log=.venv-install.log
minutes=2 stays=6 needs=10 # GB on the disk, and while installing, when the wheels lie beside it
if [ -n "${TORCH_INDEX:-}" ] || [ "$(uname -s)" = Darwin ]; then
    minutes=1 stays=2 needs=3 # without CUDA
fi

stop() {
    echo "set-up: $*" >&2
    exit 1
}

wanted() { cat requirements.txt requirements-dev.txt constraints.txt | cksum; }

if [ "$(cat .venv/.complete 2>/dev/null)" = "$(wanted)" ]; then
    touch .venv/.complete # the files are newer, but say the same
    exit 0
fi

# 1. a Python
version() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }
suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3 python3.13 python3.12 python3.11; fi
python='' found=''
for candidate in "$@"; do
    if suits "$candidate"; then
        python=$candidate
        break
    fi
    v=$(version "$candidate") && found="$found${found:+, }$candidate is $v"
done
[ -n "$python" ] || stop "Python 3.11, 3.12 or 3.13 is needed (${found:-no $1 here}):" \
    "install one from https://www.python.org/downloads/ or name it, make PYTHON=/path/to/python3.12"
v=$(version "$python")
"$python" -c 'import ensurepip, venv' 2>/dev/null || stop "$python ($v) comes without its venv module:" \
    "install it (Debian and Ubuntu: sudo apt install python${v%.*}-venv)" \
    "or name another Python, make PYTHON=/path/to/python3.12"

# 2. room
rm -rf .venv
free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1000000)}')
[ "$free" -ge "$needs" ] || stop "$needs GB of free disk are needed here while installing" \
    "($stays GB stay), $free GB are free: make room, or take PyTorch's CPU-only build (README.md)"

# 3. the packages, torch and torchvision in one resolve so that they fit each other
echo "Setting up .venv with Python $v: about $minutes min and $stays GB, this once (details: $log)"
"$python" -m venv .venv >"$log" 2>&1 || stop "$python could not make .venv: $(tail -1 "$log")"
mkdir .venv/tmp # pip unpacks here: /tmp is often too small
{
    TMPDIR=$PWD/.venv/tmp PYTHONUNBUFFERED=1 .venv/bin/python -m pip install --no-color \
        --progress-bar off --disable-pip-version-check ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        -r requirements-dev.txt -c constraints.txt 2>&1 && touch .venv/.installed
} | tee -a "$log" | while IFS= read -r line; do
    case $line in
    *Downloading*"("[0-9][0-9][0-9]*" MB)"*) echo "  ${line#"${line%%[! ]*}"}" ;;
    "Installing collected packages"*) echo "  Installing (the longest step)" ;;
    esac
done
rm -rf .venv/tmp
if [ ! -e .venv/.installed ]; then
    if grep -q 'No space left on device' "$log"; then
        stop "the disk ran full: make room ($needs GB are needed here) and call make again ($log)"
    elif grep -Eq 'connection broken by|Failed to establish a new connection|Read timed out' "$log"; then
        stop "no way to the package index: connect to a network (behind a proxy: set https_proxy)" \
            "and call make again ($log)"
    fi
    stop "pip failed ($(grep -m 1 '^ERROR' "$log")): read $log," \
        "or install requirements.txt into an environment of your own"
fi

# 4. helpers importable from anywhere, and one import of what is large: it also warms the caches
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo ../../../.. >"$site/vit_from_nothing.pth"
MPLCONFIGDIR=$PWD/.venv/matplotlib .venv/bin/python -c 'import matplotlib.pyplot, torch, torchvision' \
    >>"$log" 2>&1 || stop "torch and torchvision do not work together: $(tail -1 "$log") (all: $log)"
wanted >.venv/.complete
