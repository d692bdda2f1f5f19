"""The workload benchmark runs the real book, and says so when the book does not do what it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import generate, workload

COMMANDS = 4_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("workloads")
    generate.main([str(made), str(COMMANDS)])
    return made


@pytest.mark.parametrize("mode", workload.MODES)
@pytest.mark.parametrize("name", ["steady", "deep", "sweep", "multi"])
def test_every_workload_gives_the_trades_that_its_own_file_expects(
    folder: Path, name: str, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = json.loads((folder / f"{name}.json").read_text())

    assert workload.main([str(folder / f"{name}.bin"), "--mode", mode, "--json"]) == 0

    result = json.loads(capsys.readouterr().out)
    assert result["runs"] >= 5
    assert result["mode"] == mode
    assert 0 < result["ns_best"] <= result["ns_median"]
    assert 0 < result["processor_ns_best"] <= result["processor_ns_median"]
    assert result["backend"] in ("interpreted", "compiled")
    for fact in ("ops", "symbols", "trades", "volume", "notional", "resting", "checksum", "checksums"):
        assert result[fact] == expected[fact], fact
    assert result["trades"] > 0 or name == "multi"  # which is still filling its 64 books


@pytest.mark.once
def test_a_difference_from_what_is_expected_ends_with_status_1(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = json.loads((folder / "steady.json").read_text())
    (tmp_path / "steady.bin").write_bytes((folder / "steady.bin").read_bytes())
    (tmp_path / "steady.json").write_text(json.dumps({**expected, "trades": expected["trades"] + 1}))

    assert workload.main([str(tmp_path / "steady.bin"), "--json"]) == 1

    assert f"Expected trades {expected['trades'] + 1}, got {expected['trades']}" in capsys.readouterr().err


def test_a_file_that_is_cut_or_absent_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.bin").write_bytes((folder / "steady.bin").read_bytes()[:100])

    for name in ("cut.bin", "absent.bin"):
        with pytest.raises(SystemExit) as stopped:
            workload.main([str(tmp_path / name)])
        assert stopped.value.code == 1


@pytest.mark.once
def test_for_a_person_there_is_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert workload.main([str(folder / "sweep.bin")]) == 0

    shown = capsys.readouterr().out
    assert "sweep" in shown
    assert "right" in shown
