"""What a machine with another code page and other ends of lines makes of this repository."""

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_rooms import MAY_IMPORT, ROOT, files, source

BYTES = {"Image", "gzip", "bz2", "lzma", "tarfile"}  # their open means bytes
MODULES = BYTES | {"", "io", "os", "codecs"}  # open(path, mode); a path's own is path.open(mode)


# Encodings


def unencoded(tree):
    """The calls that read or write text and leave its encoding to the machine's settings."""
    found = []
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        given = [ast.unparse(argument) for argument in node.args]
        place, _, name = ast.unparse(node.func).rpartition(".")
        text = False
        if name in ("read_text", "write_text"):
            text = len(given) < 1 + (name == "write_text")
        elif name in ("open", "fdopen", "TemporaryFile", "NamedTemporaryFile"):
            usual = "'b'" if name.endswith("File") or place in BYTES else "'r'"
            after = 0 if name.endswith("File") or name == "open" and place not in MODULES else 1
            text = "b" not in keywords.get("mode", (given[after:] + [usual])[0])
        elif name in ("run", "Popen", "check_output", "getoutput", "getstatusoutput"):
            text = {"text", "universal_newlines"} & set(keywords) or name.startswith("get")
        if text and "encoding" not in keywords:
            found.append(ast.unparse(node))
    return found


def test_text_has_an_encoding():
    """Windows has another one of its own, so what is written here could not be read there."""
    found = {
        path.relative_to(ROOT).as_posix(): calls
        for room in (*MAY_IMPORT, "tests")
        for path in files(room)
        if (calls := unencoded(ast.parse(source(path))))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line",
    """path.read_text()
    path.write_text(text)
    open(name)
    open(name, "w", newline="")
    open(name, mode="a")
    path.open()
    path.open("w")
    (folder / "x").open("w")
    tempfile.NamedTemporaryFile("w")
    os.fdopen(handle, "w")
    gzip.open(name, "rt")
    subprocess.run(words, text=True)
    subprocess.Popen(words, universal_newlines=True)
    subprocess.getoutput(line)""".splitlines(),
)
def test_text_without_an_encoding_is_seen(line):
    assert unencoded(ast.parse(line.strip()))
    comma = "" if line.endswith("()") else ", "
    assert not unencoded(ast.parse(f"{line.strip()[:-1]}{comma}encoding='utf-8')"))


@pytest.mark.parametrize(
    "line",
    """open(name, "rb")
    path.open("wb")
    path.open(mode="rb+")
    tempfile.TemporaryFile(dir=folder)
    Image.open(path)
    gzip.open(path)
    gzip.open(path, "rb")
    path.read_text("utf-8")
    subprocess.run(words, check=True)
    self.run(words)""".splitlines(),
)
def test_bytes_need_none(line):
    assert not unencoded(ast.parse(line.strip()))


# What a clone on Windows brings


def tracked(*words):
    """The output of a git command on this clone; skips where this is none."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("no clone")
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=True).stdout


def test_what_a_shell_reads_arrives_with_line_feeds_and_bytes_as_they_are(tmp_path):
    names = [name for name in tracked("ls-files", "-z").decode().split("\0") if name]
    windows = ["-c", "core.autocrlf=true", "-c", "core.eol=crlf"]
    tracked(*windows, "checkout-index", f"--prefix={tmp_path}/", "--", *names)
    for name in names:
        content = (tmp_path / name).read_bytes()
        shell = content.startswith(b"#!") or Path(name).name == "Makefile"
        if shell or b"\0" in content or name.endswith(".ipynb"):
            assert content == tracked("cat-file", "blob", f":{name}"), name
    assert b"\r\n" in (tmp_path / "README.md").read_bytes()  # so the rest is the machine's own


def test_every_kind_of_file_is_named_in_gitattributes():
    kinds = ("tools/setup.sh", ".ci/run", "Makefile", "notebooks/01_patches.ipynb")
    said = tracked("check-attr", "eol", "text", "--", *kinds, "a.py").decode()
    assert said.count("eol: lf") == 4 and "a.py: text: auto" in said
    pictures = [f"x.{kind}" for kind in "gif png jpg npz pt safetensors".split()]
    assert tracked("check-attr", "text", "--", *pictures).decode().count("text: unset") == 6
