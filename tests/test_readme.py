"""What the README shows works as it is printed."""

import re
from pathlib import Path

import pytest

import gpbackprop as gp
from gpbackprop.config import parse

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_config_trains():
    config = blocks("toml")[0]
    trainer = parse(config, "README.md").trainer("cpu")
    trainer.fit(epochs=1)
    assert trainer.evaluate("test")["accuracy"] > 0.8


def test_the_table_of_ones_own_trains_and_its_model_predicts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    row = "{id},{material},{shift},{temperature},{pressure},{quality}\n"
    table = row.replace("{", "").replace("}", "").replace("id", "part_id")
    for i in range(60):
        quality = ("pass", "rework", "scrap")[i % 3]
        cells = {"material": ("steel", "brass")[i % 2], "shift": i % 4 % 3, "pressure": "" if i % 11 == 5 else i % 3}
        table += row.format(id=f"p{i}", temperature=20 + 5 * (i % 3) + i % 2, quality=quality, **cells)
    (tmp_path / "parts.csv").write_text(table)
    (tmp_path / "new.csv").write_text(re.sub(",(quality|pass|rework|scrap)$", "", table, flags=re.MULTILINE))
    own, rest = blocks("toml")[1], blocks("toml")[0].partition("[[model]]")[2].replace("units = 10", "units = 3")
    config = parse(f'name = "parts"\n{own}\n[[model]]{rest}', "README.md")
    (tmp_path / "parts.toml").write_text(config.text())
    trainer = config.trainer("cpu")
    trainer.fit()
    (tmp_path / "runs").mkdir()
    trainer.save(tmp_path / "runs" / "parts")
    exec(compile(blocks("python")[1], "README.md", "exec"), {"gp": gp})
    printed = capsys.readouterr().out
    assert printed.count("'") == 120
    assert {"pass", "rework", "scrap"} >= set(re.findall(r"'(\w+)'", printed))


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[0], "README.md", "exec"), {})
    accuracy = float(re.search(r"'accuracy': ([\d.]+)", capsys.readouterr().out)[1])
    assert accuracy == pytest.approx(0.97, abs=0.015)
    assert (tmp_path / "digits.h5").is_file()
