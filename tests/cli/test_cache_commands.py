"""``skexit cache``, as a user runs it."""

import errno
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
from caches import LAYOUT, N_ROWS, ORIGIN, append_rows, write_cache

from skexit import ExitLayout, FeatureCache
from skexit.cache import CacheWriter
from skexit.cli import main

INFO = """\
cache      {path}
rows       10
complete   yes
labels     yes
classes    2: no, yes
stored as  float32
size       360 bytes in 3 shards

exit    name  logits  features  pooled by  cost (MACs)  % of the last
   0  layer1       0         3        avg           10          33.3%
   1  layer2       2         1          -           30         100.0%

origin
  model  a
  data   b
"""


@pytest.fixture
def path(tmp_path):
    write_cache(tmp_path / "cache", y=np.arange(N_ROWS))
    return tmp_path / "cache"


class TestInfo:
    def test_what_is_printed(self, path, capsys):
        assert main(["cache", "info", str(path)]) == 0
        expected = INFO.format(path=path).replace("360 bytes", f"{FeatureCache(path).n_bytes} bytes")
        assert capsys.readouterr().out == expected

    def test_size_is_that_of_the_arrays(self, path):
        assert FeatureCache(path).n_bytes == sum(np.load(file).nbytes for file in path.rglob("*.npy"))

    def test_unfinished_and_without_labels(self, tmp_path, capsys):
        layout = ExitLayout([0, 0], [3, 1], costs=[1, 2e9], cost_unit="FLOPs")
        CacheWriter(tmp_path, layout, origin={}).__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert main(["cache", "info", str(tmp_path)]) == 0
        printed = capsys.readouterr().out
        for line in ("complete   no: the extraction has not finished", "labels     no", "classes    not named"):
            assert f"{line}\n" in printed
        assert "size       0 bytes in 0 shards\n" in printed
        assert "cost (FLOPs)" in printed

    @pytest.mark.parametrize(
        ("n_classes", "expected"), [(3, "3, not named"), (None, "3: 0, 1, 2"), (9, "9: 0, 1, 2, 3, 4, ...")]
    )
    def test_classes(self, tmp_path, capsys, n_classes, expected):
        classes = None if n_classes == 3 else range(n_classes or 3)
        with CacheWriter(tmp_path, ExitLayout([n_classes or 3], [0], classes=classes), origin={}):
            pass
        main(["cache", "info", str(tmp_path)])
        assert f"classes    {expected}\n" in capsys.readouterr().out

    def test_no_cache(self, tmp_path, capsys):
        assert main(["cache", "info", str(tmp_path)]) == 1
        assert f"skexit cache info: error: there is no cache at '{tmp_path}'" in capsys.readouterr().err

    def test_the_status_is_that_of_the_process(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["skexit", "cache", "info", str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("skexit.cli", run_name="__main__")
        assert ended.value.code == 1

    def test_a_url_without_fsspec(self, capsys, monkeypatch):
        for name in ("fsspec", "fsspec.core"):
            monkeypatch.setitem(sys.modules, name, None)
        assert main(["cache", "info", "s3://bucket/cache"]) == 1
        assert "skexit cache info: error: reading 's3://bucket/cache' needs fsspec" in capsys.readouterr().err


class TestVerify:
    def test_whole(self, path, capsys):
        assert main(["cache", "verify", str(path)]) == 0
        assert f"{path}: 10 rows, {FeatureCache(path).n_bytes} bytes, no file is damaged\n" == capsys.readouterr().out

    def test_quiet(self, path, capsys):
        assert main(["cache", "verify", "--quiet", str(path)]) == 0
        assert capsys.readouterr() == ("", "")

    def test_every_damaged_file_is_named(self, path, capsys):
        damaged = [("shard-00000", "y.npy"), ("shard-00002", "exit0.features.npy"), ("shard-00002", "exit1.logits.npy")]
        for shard, name in damaged:
            content = bytearray((path / shard / name).read_bytes())
            content[-1] ^= 1
            (path / shard / name).write_bytes(content)
        assert main(["cache", "verify", str(path)]) == 1
        printed = capsys.readouterr().err
        assert printed.count("is damaged") == len(damaged)
        for shard, name in damaged:
            assert f"{shard}' is damaged: {name}: its checksum differs" in printed

    def test_unfinished(self, tmp_path, capsys):
        writer = CacheWriter(tmp_path, LAYOUT, origin=ORIGIN, shard_rows=4)
        append_rows(writer)
        writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert main(["cache", "verify", str(tmp_path)]) == 0
        assert "8 rows" in (printed := capsys.readouterr().out)
        assert "no file is damaged; the extraction has not finished" in printed

    def test_a_lost_shard(self, path, capsys):
        """Of a cache that was complete; opened as one that is not, all that is left of it is whole."""
        shutil.rmtree(path / "shard-00002")
        assert main(["cache", "verify", str(path)]) == 1
        printed = capsys.readouterr()
        assert "has 8 rows but its manifest promises 10: shard-00002 is missing" in printed.err
        assert printed.out == ""


class TestMerge:
    def test_in_a_process_of_its_own(self, path, tmp_path):
        write_cache(tmp_path / "other", n_rows=3, y=np.arange(3))
        command = [sys.executable, "-m", "skexit.cli", "cache", "merge", "cache", "other", "all"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert printed.stdout.startswith("all: 13 rows, ")
        assert printed.stderr == "", "a progress bar is for terminals"
        assert FeatureCache(tmp_path / "all").y.tolist() == [*range(N_ROWS), *range(3)]

    def test_quiet(self, path, tmp_path, capsys):
        assert main(["cache", "merge", "--quiet", str(path), str(tmp_path / "all")]) == 0
        assert capsys.readouterr() == ("", "")

    def test_error(self, path, tmp_path, capsys):
        write_cache(tmp_path / "other", origin={"model": "other"})
        assert main(["cache", "merge", str(path), str(tmp_path / "other"), str(tmp_path / "all")]) == 1
        assert "skexit cache merge: error: the caches" in capsys.readouterr().err

    def test_into_a_folder_that_is_written(self, path, tmp_path, capsys):
        with CacheWriter(tmp_path / "all", LAYOUT, origin=ORIGIN):
            assert main(["cache", "merge", str(path), str(tmp_path / "all")]) == 1
        assert "skexit cache merge: error: another process is writing into" in capsys.readouterr().err

    def test_a_full_disk(self, path, tmp_path, capsys, monkeypatch):
        def fail(*arguments, **options):
            error = OSError(errno.ENOSPC, "No space left on device")
            error.add_note("Make room.")
            raise error

        monkeypatch.setattr("skexit.cache.merge_caches", fail)
        assert main(["cache", "merge", str(path), str(tmp_path / "all")]) == 1
        assert "No space left on device\nMake room.\n" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["cache"], ["cache", "merge", "one"], ["cache", "info"]])
def test_usage(arguments, capsys):
    assert main(arguments) == 2
    assert "Usage: skexit cache" in capsys.readouterr().err


HOSTILE = {"model": "\x1b[31mred\x1b[0m", "a\x1b]0;title\x07b": "x", "data": "two\nlines\r\u202eback", "name": "é中"}


def untrusted(folder):
    """A cache whose origin and classes hold what a terminal obeys; and one of another origin, to be told from it."""
    layout = ExitLayout([2, 2], [0, 0], classes=["\x1b[2J", "ok"], cost_unit="\x1b[5m")
    for name, origin in (("a", HOSTILE), ("b", {"model": "\x9b31m", "c\x1b[1m": "y"})):
        with CacheWriter(folder / name, layout, origin=origin) as writer:
            writer.append([np.zeros((1, 2))] * 2, [None, None])
    return [str(folder / name) for name in "ab"]


@pytest.mark.parametrize("command", ["info", "verify", "merge", "missing", "report"])
def test_nothing_that_a_terminal_obeys_is_printed(tmp_path, capsys, command):
    a, b = untrusted(tmp_path)
    main(
        {
            "info": ["cache", "info", a],
            "verify": ["cache", "verify", a],
            "merge": ["cache", "merge", a, b, str(tmp_path / "c")],
            "missing": ["cache", "info", str(tmp_path / "\x1b[31m")],
            "report": ["report", a, str(tmp_path / "p.joblib"), "--out", str(tmp_path / "out.html")],
        }[command]
    )
    printed = "".join(capsys.readouterr())
    assert printed
    assert all(line.isprintable() for line in printed.split("\n")), printed
    if command == "info":
        assert r"\x1b[31mred\x1b[0m" in printed
        assert "é中" in printed
        assert r"two\nlines\r\u202eback" in printed
