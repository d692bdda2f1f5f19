"""Settings work without a word, and an error says which key, what was expected and what came."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway import config as settings
from gateway.cli.config import TEMPLATE, config_app
from gateway.config import Config, ConfigError, parse, to_toml
from gateway.settlement import YEN

runner = CliRunner()


@pytest.mark.parametrize(
    "text",
    [
        'members = ["alfa\\n"]',
        'market = "DOJIMA\\n"',
        '[schedule]\nutc_offset = "+09:00\\n"',
        '[schedule]\nday_start = "00:00:00\\n"',
        '[schedule.sessions]\nSTART = [["09:00\\n", "PreOpen"]]',
    ],
)
def test_a_newline_behind_a_value_is_no_part_of_it(text: str):
    with pytest.raises(ConfigError, match="Expected"):
        parse(text)


def test_no_settings_are_settings():
    assert parse("") == Config()
    assert Config().broker.url == "embedded://"


def test_what_is_shown_reads_back_to_the_same():
    text = """
    members = ["alfa", "bravo"]
    [schedule]
    days = 3
    [schedule.sessions]
    START = [["09:00", "PreOpen"], ["10:00", "PreOpenNCP"]]
    [tick_tables]
    odd = [[0, 1], [100, 5]]
    [[instrument]]
    instrument = "KDX-1"
    rules = { break_new = 1, allocation = "PRICE_TIME" }
    [[instrument]]
    instrument = "KDX-2"
    lot = 10
    """
    config = parse(text)
    assert parse(to_toml(config)) == config
    assert parse(to_toml(Config())) == Config()


def test_rules_of_all_instruments_hold_for_each_that_names_none(tmp_path: Path):
    text = """
    [instruments]
    rules = { self_trade = "none" }
    [[instrument]]
    instrument = "KDX-1"
    [[instrument]]
    instrument = "KDX-2"
    rules = { break_new = 1 }
    """
    listed = settings.listings(parse(text), tmp_path)
    assert [listing.rules for listing in listed] == [{"self_trade": "none"}, {"break_new": 1}]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "unknown field `x`"),
        ("[limits]\nmember_rate = 0", "Expected `int` >= 1, got 0 - at limits.member_rate"),
        ("[limits]\nmember_rte = 5", "unknown field `member_rte` - at limits"),
        ('members = ["Alfa"]', "got 'Alfa' - at members[0]"),
        ('members = ["exchange"]', "at members"),
        ('[broker]\nurl = "http://user:secret@host"', "Expected embedded://, mqtt://host or mqtts://host, got 'http'"),
        ("[clock]\nfactor = 60", "Expected a start time for an accelerated clock"),
        ('[clock]\nstart = "2026-11-24"', "got '2026-11-24' - at clock.start"),
        (
            '[schedule.sessions]\nSTART = [["9:00", "PreOpen"]]',
            "HH:MM:SS, got '9:00' - at schedule.sessions.START[0][0]",
        ),
        ('[schedule.sessions]\nSTART = [["09:00", "Open"]]', "got 'Open' - at schedule.sessions.START[0][1]"),
        (
            '[schedule.sessions]\nSTART = [["09:00", "PreOpen"], ["08:00", "Closed"]]',
            "Expected a time not before 09:00:00, got '08:00' - at schedule.sessions.START[1][0]",
        ),
        ('[[instrument]]\ninstrument = "kdx"', "got 'kdx' - at instrument[0].instrument"),
        ('[[instrument]]\ninstrument = "A"\n[[instrument]]\ninstrument = "A"', "each instrument once, got 'A'"),
        ('members = ["a"]\n[operators]\nnames = ["a", "b"]', "that of a member, got 'a' - at operators.names[0]"),
        ("[clock", "dojima.toml"),
    ],
)
def test_an_error_names_key_expectation_and_value(text: str, says: str):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert str(caught.value).startswith("dojima.toml: ")
    assert "secret" not in str(caught.value)


def test_instruments_come_from_a_file_with_the_settings_filling_the_gaps(tmp_path: Path):
    (tmp_path / "tokens.csv").write_text("code,description,reference_price,lot\nKDX-1,House,99000,\nKDX-2,Flat,,10\n")
    config = parse(
        '[instruments]\nfile = "tokens.csv"\nreference_price = 5000\n'
        '[[instrument]]\ninstrument = "KDX-2"\nprofile = "CONTINUOUS"\n'
    )
    first, second = settings.listings(config, tmp_path)
    assert (first.instrument, first.reference_price, first.lot, first.profile) == ("KDX-1", 99000, 1, "START")
    assert (second.instrument, second.reference_price, second.profile) == ("KDX-2", 5000, "CONTINUOUS")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("code,lot\nKDX-1,ten\n", "tokens.csv:2: Expected a whole number, got 'ten' - at lot"),
        ("code,lot\nkdx,1\n", "tokens.csv:2: Expected `str` matching regex"),
        ("name,lot\nKDX-1,1\n", "tokens.csv:2: Expected an instrument code"),
    ],
)
def test_a_bad_line_of_the_instruments_file_is_named(tmp_path: Path, rows: str, says: str):
    (tmp_path / "tokens.csv").write_text(rows)
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        settings.listings(parse('[instruments]\nfile = "tokens.csv"'), tmp_path)


def test_the_brokers_password_comes_from_its_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(settings.PASSWORD_VARIABLE, "from-environment")
    assert settings.password(Config(), tmp_path) == "from-environment"
    (tmp_path / "secret").write_text("from-file\n")
    config = parse('[broker]\npassword_file = "secret"')
    assert settings.password(config, tmp_path) == "from-file"
    (tmp_path / "secret").unlink()
    with pytest.raises(ConfigError, match=r"broker\.password_file"):
        settings.password(config, tmp_path)


def test_opening_balances_have_a_reference_that_stays_the_same(tmp_path: Path):
    (tmp_path / "openings.csv").write_text("account,asset,quantity\nalfa,JPY,1000000\nalfa,KDX-1,50\n")
    config = parse('[settlement]\nopenings = "openings.csv"')
    first = settings.openings(config, tmp_path)
    assert first == settings.openings(config, tmp_path)
    assert [row[:3] for row in first] == [("alfa", YEN, 1_000_000), ("alfa", "KDX-1", 50)]
    (tmp_path / "openings.csv").write_text("account,asset,quantity\nalfa,JPY,-5\n")
    with pytest.raises(ConfigError, match=r"openings\.csv:2"):
        settings.openings(config, tmp_path)


def test_config_init_writes_settings_that_check_and_show_accept(tmp_path: Path):
    assert runner.invoke(config_app, ["init", "--dir", str(tmp_path)]).exit_code == 0
    checked = runner.invoke(config_app, ["check", "--dir", str(tmp_path)])
    assert checked.exit_code == 0
    assert "1 instruments" in checked.output
    shown = runner.invoke(config_app, ["show", "--dir", str(tmp_path)])
    assert parse(shown.output) == parse(TEMPLATE)
    again = runner.invoke(config_app, ["init", "--dir", str(tmp_path)])
    assert again.exit_code == 2
    assert (tmp_path / "dojima.toml").read_text() == TEMPLATE


def test_config_check_refuses_a_profile_without_session_times(tmp_path: Path):
    (tmp_path / "dojima.toml").write_text('[schedule.sessions]\n[[instrument]]\ninstrument = "A"\n')
    result = runner.invoke(config_app, ["check", "--dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "profile START - at schedule.sessions" in result.output


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('profile = "TSE"', "KDX-1: Expected a profile of START"),
        ('limit_table = "none such"', "none such"),
        ("rules = {nonsense = 1}", "'nonsense'"),
        ('profile = "TSE_HYBRID"\nrules = {quote_width_table = "none such"}', "none such"),
    ],
)
def test_config_check_refuses_what_the_market_would_refuse(tmp_path: Path, text: str, says: str):
    (tmp_path / "dojima.toml").write_text(f'[[instrument]]\ninstrument = "KDX-1"\n{text}\n')
    result = runner.invoke(config_app, ["check", "--dir", str(tmp_path), "--json"])
    assert result.exit_code == 2
    assert says in json.loads(result.stdout.splitlines()[-1])["error"]["what"]
