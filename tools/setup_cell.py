# @title Set-up: fetches the rest where this page was opened alone
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = ""
here = Path.cwd()
places = [here, *here.parents, *map(Path, sys.path), *sorted(here.glob("vit-from-nothing*"))]
root = next((place for place in places if (place / "helpers/model.py").is_file()), None)
if not root:  # opened alone, as on Colab: fetch the rest
    assert REPOSITORY, "no helpers/ here: open this notebook in a clone, or set REPOSITORY above"
    with TemporaryDirectory(dir=here, ignore_cleanup_errors=True) as part:  # named when whole
        fetch = f'git clone -q --depth=1 "{REPOSITORY}" {Path(part).name}/clone'
        fetch += f' && "{sys.executable}" -m pip install -q torchinfo onnx'
        failed, said = subprocess.getstatusoutput(fetch, encoding="utf-8", errors="replace")
        *_, why = said.split("\n")
        assert not failed, f"{why}: check the network and git, then run this cell again"
        taken = (here / "vit-from-nothing").exists()
        root = here / ("vit-from-nothing-" + Path(part).name if taken else "vit-from-nothing")
        Path(part, "clone").rename(root)
sys.path.insert(0, str(root))
