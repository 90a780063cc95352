"""A ledger of somebody else writes to no other place, reads no other file, and sends nothing to the screen."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from crelu_data.storage import open_filesystem
from sweeps.store.foreign import known_analysis_files, printable, relative
from sweeps.store.lease import _parsed
from sweeps.store.lease_file import Content
from sweeps.store.ledger import Ledger, checksum
from sweeps.store.logins import has_password, not_asked, own_store, same_store, take_login, without_login

OUTSIDE = ["/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/.", "..", "a\\..\\b", "a\nb", "a\x1b[2Jb", "a/"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_name_that_leads_out_of_its_folder_is_refused_by_everything_that_takes_one(tmp_path: Path, name: str) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    with pytest.raises(ValueError, match="is no name of a file below its folder"):
        relative(name)
    for use in (ledger.read, ledger.names, ledger.folders, ledger.delete, ledger.read_json):
        with pytest.raises(ValueError, match="is no name of a file"):
            use(name)
    with pytest.raises(ValueError, match="is no name of a file"):
        ledger.write(name, b"")
    with pytest.raises(ValueError, match="is no name of a file"):
        ledger.head(name, 4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("link", ["trials", "trials/k", "trials/k/history.json"])
def test_link_in_a_ledger_is_refused_and_what_it_leads_to_stays(tmp_path: Path, link: str) -> None:
    home = tmp_path / "home"
    (home / "k").mkdir(parents=True)
    for folder in (home, home / "k"):
        (folder / "history.json").write_text("mine")
    ledger = Ledger(str(tmp_path / "ledger"))
    place = tmp_path / "ledger" / link
    place.parent.mkdir(parents=True)
    place.symlink_to({0: home, 1: home / "k", 2: home / "history.json"}[link.count("/")])
    name = "trials/k/history.json"
    for use in (
        ledger.read,
        ledger.delete,
        lambda name: ledger.write(name, b"theirs"),
        lambda name: ledger.head(name, 1),
    ):
        with pytest.raises(ValueError, match="is a link, which no ledger holds"):
            use(name)
    if link != name:  # the folder that holds a link is deleted with it
        with pytest.raises(ValueError, match="is a link"):
            ledger.forget("k")
    assert {path.read_text() for path in home.rglob("*.json")} == {"mine"}


def test_folder_is_deleted_without_what_its_links_lead_to(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "deep").mkdir(parents=True)
    (mine / "deep" / "file").write_text("x")
    ledger = Ledger(str(tmp_path / "ledger"))
    ledger.write("trials/k/history.json", b"[]")
    os.symlink(mine, ledger.path("trials/k") + "/link")
    ledger.delete("trials/k")
    assert (mine / "deep" / "file").read_text() == "x"
    assert not os.path.lexists(ledger.path("trials/k"))


def test_nothing_is_written_through_a_link_in_the_place_of_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    victim = tmp_path / "victim"
    victim.write_text("mine")
    ledger.write("a.json", b"old")
    monkeypatch.setattr("threading.get_ident", lambda: 7)
    os.symlink(victim, ledger.path(f".a.json.{os.getpid()}.7.part"))
    with pytest.raises(OSError, match=r"a\.json"):
        ledger.write("a.json", b"theirs")
    assert (victim.read_text(), ledger.read("a.json")) == ("mine", b"old")


@pytest.mark.parametrize(
    "files",
    [
        {"/home/me/.bashrc": ""}, {"../../x": ""}, {"trial.json": "", "notes.txt": ""}, {"trial.json": 7},
        ["trial.json"], {"files/../../x": ""}, {"files//x": ""}, {"files/": ""}, {"files": ""}, {"files/x": 7},
        {"files/a\x1b[2J": ""}, {"files/\udcff": ""},
    ],
)  # fmt: skip
def test_result_that_names_files_no_trial_has_is_no_result(tmp_path: Path, files: object) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.commit("k", {"key": "k", "files": files})
    assert ledger.result("k") is None
    task_files = {"files/plots/ä b.png": "0" * 64, "files/.hidden": ""}
    ledger.commit("k", {"key": "k", "files": {"trial.json": "", "tables/scores.parquet": "0" * 64} | task_files})
    assert ledger.result("k") is not None


@pytest.mark.parametrize("name", ["../x.csv", "/x.png", "a/b.csv", ".x.csv", "x.json", "x.sh", "", "a\n.csv"])
def test_analysis_names_tables_and_pictures_alone(name: str) -> None:
    assert known_analysis_files({"pairs.parquet": "", "conv1_filters.png": "", "summary.csv": ""})
    assert not known_analysis_files({name: ""})
    assert not known_analysis_files([name])


@pytest.mark.parametrize(
    "sign", ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\u202egnp.exe", "\r", "\x00", "\x7f", "\u2066", "\x08"]
)
@pytest.mark.parametrize("escaped", [True, False])
def test_no_text_from_a_ledger_holds_an_escape_sequence(tmp_path: Path, sign: str, escaped: bool) -> None:
    ledger = Ledger(str(tmp_path))
    text = f"Baseline{sign}x ± 2\n"
    value: dict[str, Any] = {"label": text, "list": [{text: text}], "n": 1.5}
    content = json.dumps(value, ensure_ascii=escaped)
    ledger.write("a.json", content.encode())
    read = ledger.read_json("a.json")
    assert read is not None
    assert read["label"] == printable(text) != text
    assert read["list"] == [{printable(text): printable(text)}]
    assert read["label"].startswith("Baseline\\")
    assert read["label"].endswith("± 2\n")
    # A result is what its checksum says, and printable all the same.
    ledger.write("results/k.json", json.dumps({**value, "check": checksum(value)}, ensure_ascii=escaped).encode())
    assert (ledger.result("k") or {})["label"] == printable(text)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_file_in_another_encoding_is_damaged_and_its_escape_sequences_are_not_read(
    tmp_path: Path, encoding: str
) -> None:
    ledger = Ledger(str(tmp_path))
    value = {"label": "\x1b[2J", "owner": "\x1b[2J"}
    ledger.write("a.json", json.dumps({**value, "check": checksum(value)}).encode(encoding))
    assert ledger.read_json("a.json") is None
    assert ledger.read_checked("a.json") is None
    assert _parsed(Content(json.dumps(value).encode(encoding), "tag")) == {}


@pytest.mark.parametrize("text", ["plain", "±0.3 – „ä“ 漢字 → ✓ ‐", "tab\tand\nline", "C:\\temp\\new"])
def test_other_texts_stay_as_they_are(tmp_path: Path, text: str) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.write_json("a.json", {"a": text})
    assert ledger.read_json("a.json") == {"a": text}


# Logins

ADDRESSES = [
    ("http://me:secret@host:5000/", "http://host:5000/"),
    ("https://me:se%40cret@host/path", "https://host/path"),
    ("postgresql+psycopg2://me:secret@host/runs", "postgresql+psycopg2://host/runs"),
    ("http://me@host", "http://host"),
    ("sqlite:////a/b@c:d/mlflow.db", "sqlite:////a/b@c:d/mlflow.db"),
    ("http://host", "http://host"),
    ("postgresql://mlflow:se/cret@db/mlflow", "postgresql://db/mlflow"),
    (
        "postgresql+psycopg2://me:7/se#c?ret@db:5432/runs?sslmode=require",
        "postgresql+psycopg2://db:5432/runs?sslmode=require",
    ),
    ("https://me:se/cret@host/path", "https://host/path"),
    ("mysql://me@host/runs?passwd=secret&charset=utf8", "mysql://host/runs?charset=utf8"),
    ("postgresql://host/runs?sslpassword=secret", "postgresql://host/runs"),
    ("mssql+pyodbc:///?odbc_connect=UID%3Dme%3BPWD%3Dsecret", "mssql+pyodbc:///"),
    ("s3://key:7/se@bucket/a@b", "s3://bucket/a@b"),
    ("http://me:secret@[::1]:5000/a@b", "http://[::1]:5000/a@b"),
    ("s3://bucket/a@b", "s3://bucket/a@b"),
    ("http://host:5000/a@b", "http://host:5000/a@b"),
    ("http://[::1]:5000/a@b", "http://[::1]:5000/a@b"),
    ("hdfs://host:8020/a@b?x=c@d", "hdfs://host:8020/a@b?x=c@d"),
    ("/home/me:you/a@b", "/home/me:you/a@b"),
]


@pytest.mark.parametrize(("address", "bare"), ADDRESSES)
def test_login_is_taken_out_of_an_address(address: str, bare: str) -> None:
    assert without_login(address) == bare
    assert same_store(address, bare)
    assert has_password(address) == ("se" in address)


def test_password_of_an_address_goes_to_where_the_client_looks() -> None:
    environment: dict[str, str] = {}
    assert take_login("https://me:se%40cret@host/x", environment) == "https://host/x"
    assert environment == {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "se@cret"}
    environment = {}
    assert take_login("postgresql://me:secret@host/x", environment) == "postgresql://me@host/x"
    assert environment == {"PGUSER": "me", "PGPASSWORD": "secret"}
    assert take_login("postgresql://me:a/b#c?d@host/x", environment) == "postgresql://me@host/x"
    assert environment == {"PGUSER": "me", "PGPASSWORD": "a/b#c?d"}
    for address in (
        "mysql://me:secret@host/x",
        "mysql://me:a/secret?x@host/x",
        "mysql://me@host/x?passwd=secret",
        "postgresql://host/x?user=me&password=secret",
        "postgresql://me:a/secret@host/x?sslpassword=secret",
    ):
        with pytest.raises(ValueError, match="with a password, which others would see") as error:
            take_login(address, {})
        assert "secret" not in str(error.value)


def test_own_store_is_named_by_the_user_and_never_with_a_password() -> None:
    environment = {"MLFLOW_TRACKING_URI": "http://me:secret@host"}
    assert own_store(None, "/out", environment) == "http://host"
    assert environment["MLFLOW_TRACKING_PASSWORD"] == "secret"
    assert own_store("http://other", "/out", environment) == "http://other"
    assert own_store(None, "/out", {}) == "sqlite:////out/mlflow.db"
    assert own_store(None, "s3://bucket", {}) == ""
    for flag in ("http://me:secret@host", "postgresql://me:secret?x@host/a", "mysql://me@host/a?passwd=secret"):
        with pytest.raises(ValueError, match="every user here could read") as error:
            own_store(flag, "/out", {})
        assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    ["s3://key:secret@bucket/out", "gs://a:secret@b", "s3://key:7/sec/ret@bucket", "s3://key:sec#ret?@bucket/a@b"],
)
def test_ledger_with_a_key_in_its_address_is_refused_without_showing_it(address: str) -> None:
    with pytest.raises(ValueError, match="holds a key, which others would see") as error:
        Ledger(address).read("a")
    assert "sec" not in str(error.value).replace("AWS_SECRET_ACCESS_KEY", "")
    assert f"the address of {'b' if address.startswith('gs') else 'bucket'} holds" in str(error.value)


def test_an_at_in_a_path_is_no_login(tmp_path: Path) -> None:
    for place in (f"{tmp_path}/a:b@c", f"file://{tmp_path}/a:b@c"):
        _, path = open_filesystem(place)
        assert path == f"{tmp_path}/a:b@c"


def test_option_that_names_a_store_is_quoted_for_a_shell() -> None:
    uri = "sqlite:////my out/mlflow.db"
    assert not_asked(uri).endswith(f": --tracking-uri '{uri}' says it is yours")
