"""Texts from datasets on the Hub, through the real client and a loopback Hub."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, running_hub, stand_in

import fundamentallm as fl
from fundamentallm.cli.commands import main
from fundamentallm.data.corpus import open_corpus
from fundamentallm.data.file_formats import open_file
from fundamentallm.data.hub_dataset import DatasetName, parse_dataset
from fundamentallm.errors import CorpusError, HubError

STORIES = [f"Story {i}: a fox met a hen.\nThey sang." for i in range(40)]
CARD = """---
configs:
- config_name: small
  data_files:
  - split: train
    path: small/*
- config_name: large
  default: {default}
  data_files:
  - split: train
    path: ["large/a-*.jsonl", "large/**/b.jsonl"]
  - split: test
    path: large/test.jsonl
---
"""


def records(texts: list[str], **others: object) -> bytes:
    return "".join(json.dumps({"id": "x" * 90, "story": text, **others}) + "\n" for text in texts).encode()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub() as hub:
        hub.users = {"hf_alice": "alice"}
        stand_in(hub, monkeypatch, tmp_path)
        yield hub


def test_names() -> None:
    assert parse_dataset("hub:a/b") == DatasetName("a/b", None, None, None, None)
    assert parse_dataset("hub:a/b@v1:test:story") == DatasetName("a/b", "v1", None, "test", "story")
    assert parse_dataset("hub:a/b:large/train") == DatasetName("a/b", None, "large", "train", None)
    assert parse_dataset("hub:a/b::story") == DatasetName("a/b", None, None, None, "story")
    for wrong in ("hub:a", "hub:", "hub:a/b:c:d:e", "hub:a/b/c", "hub:../b"):
        with pytest.raises(CorpusError, match="names no dataset"):
            parse_dataset(wrong)


def test_the_size_comes_first_and_the_text_is_all_there(hub: Hub) -> None:
    hub.add("a/texts", {"data/train-1.txt": b"one\n", "data/train-2.txt": b"two", "data/valid.txt": b"no",
                        "README.md": b"about"}, kind="dataset")  # fmt: skip
    told: list[tuple[str, float]] = []
    corpus = open_corpus(["hub:a/texts"], progress=lambda what, share: told.append((what, share)))
    assert corpus.read() == "one\ntwo" and corpus.read() == "one\ntwo"
    assert corpus.name == "hub:a/texts" and corpus.files == ("data/train-1.txt", "data/train-2.txt")
    assert told[0] == ("Fetching 0.0 MB of a/texts from the Hub", 0.0) and told[-1][1] == 1.0
    assert open_corpus(["hub:a/texts:validation"]).read() == "no"
    with pytest.raises(CorpusError, match=r"no split 'test': .*train, validation"):
        open_corpus(["hub:a/texts:test"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("all.jsonl", records(STORIES)),
        ("all.jsonl.gz", gzip.compress(records(STORIES))),
        ("all.json", records(STORIES)),
        ("all.json", json.dumps([{"story": text} for text in STORIES]).encode()),
        ("all.csv", ("id,story\n" + "".join(f'x,"{text}"\n' for text in STORIES)).encode()),
        ("all.tsv", ("id\tstory\n" + "".join(f'x\t"{text}"\n' for text in STORIES)).encode()),
    ],
)
def test_every_format(hub: Hub, name: str, content: bytes) -> None:
    hub.add("a/d", {name: content, "notes.txt": b"short"}, kind="dataset")
    for source in ("hub:a/d", "hub:a/d:train", "hub:a/d::story", "hub:a/d:train:story"):
        assert open_corpus([source]).read() == "".join(f"{text}\n\n" for text in STORIES)
    with pytest.raises(CorpusError, match=r"no column 'poem' with text: choose one of .*story"):
        open_corpus(["hub:a/d::poem"])


def test_parquet(hub: Hub, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow, an extra, is not installed")
    from pyarrow import parquet

    buffer = io.BytesIO()
    table = pyarrow.table({"id": list(range(41)), "label": ["x"] * 41, "story": [*STORIES, None]})
    parquet.write_table(table, buffer, row_group_size=7)
    hub.add("a/d", {"data/train-00000-of-00001.parquet": buffer.getvalue()}, kind="dataset")
    assert open_corpus(["hub:a/d"]).read() == "".join(f"{text}\n\n" for text in STORIES)
    assert open_corpus(["hub:a/d:train:label"]).read() == "x\n\n" * 41
    with pytest.raises(CorpusError, match="no column 'id' with text: choose one of label, story"):
        open_corpus(["hub:a/d:train:id"])
    with pytest.raises(CorpusError, match="larger than the"):
        open_corpus(["hub:a/d"], max_bytes=100)
    (tmp_path / "broken.parquet").write_bytes(buffer.getvalue()[:-20])
    with pytest.raises(CorpusError, match="damaged"):
        open_file(tmp_path / "broken.parquet", "broken.parquet")


def test_parquet_without_pyarrow_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1....PAR1")
    with pytest.raises(CorpusError, match="pip install pyarrow"):
        open_corpus([tmp_path / "a.parquet"])


def test_subsets_of_a_card(hub: Hub) -> None:
    files = {
        "README.md": CARD.format(default="true").encode(),
        "small/x.jsonl": records(["small"]),
        "large/a-1.jsonl": records(["a"]),
        "large/deep/b.jsonl": records(["b"]),
        "large/test.jsonl": records(["t"]),
    }
    repository = hub.add("a/d", files, kind="dataset")
    assert open_corpus(["hub:a/d"]).read() == "a\n\nb\n\n"
    assert open_corpus(["hub:a/d:test"]).read() == "t\n\n"
    assert open_corpus(["hub:a/d:small/train"]).read() == "small\n\n"
    with pytest.raises(CorpusError, match=r"no split 'dev': .*train, test"):
        open_corpus(["hub:a/d:dev"])
    repository.commit("no default", files | {"README.md": CARD.format(default="false").encode()})
    with pytest.raises(CorpusError, match="several subsets: write hub:a/d:SUBSET/train with one of small, large"):
        open_corpus(["hub:a/d"])


def test_a_limit_takes_the_beginning(hub: Hub) -> None:
    hub.add("a/d", {"1.jsonl": records(STORIES), "2.jsonl": records(STORIES)}, kind="dataset")
    corpus = open_corpus(["hub:a/d"], max_bytes=1000)
    text = corpus.read()
    whole = "".join(f"{story}\n\n" for story in STORIES)
    assert text and whole.startswith(text) and text.endswith("sang.\n\n")
    assert any("Only the first 0.0 MB of 0.0 MB" in note for note in corpus.notes)
    assert sum(path.endswith("2.jsonl") for _, path, _ in hub.requests) == 0


def test_a_cut_connection_is_taken_up_again(hub: Hub) -> None:
    content = "\n".join(STORIES).encode()
    hub.add("a/d", {"a.txt": content}, kind="dataset")
    hub.fail("GET", r"/resolve/", None, times=2)
    assert open_corpus(["hub:a/d"]).read() == content.decode()
    hub.fail("GET", r"/resolve/", None)
    with pytest.raises(HubError, match="connection to the Hub was cut"):
        open_corpus(["hub:a/d"])


def test_it_can_be_cancelled(hub: Hub) -> None:
    hub.add("a/d", {"a.txt": b"x" * 3_000_000}, kind="dataset")
    with pytest.raises(CorpusError, match="stopped"):
        open_corpus(["hub:a/d"], cancelled=lambda: True)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"a.bin": b"x", "README.md": b"y"}, "no text, JSONL, CSV or Parquet"),
        ({"a.txt": b""}, "is empty"),
        ({"a.txt": b"\x00\x01\x02" * 500}, "."),
        ({"a.json": b"[1, 2"}, "no valid JSON"),
    ],
)
def test_unusable_datasets(hub: Hub, files: dict[str, bytes], says: str) -> None:
    hub.add("a/d", files, kind="dataset")
    with pytest.raises(CorpusError, match=says):
        open_corpus(["hub:a/d"])


def test_missing_private_and_failing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("alice/secret", {"a.txt": b"text"}, kind="dataset", private=True)
    for name in ("alice/secret", "alice/nothing"):
        with pytest.raises(HubError, match=f"The dataset '{name}' could not be fetched.*no such repository"):
            open_corpus([f"hub:{name}"])
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert open_corpus(["hub:alice/secret"]).read() == "text"
    hub.fail("GET", "/resolve/", 503)
    with pytest.raises(HubError, match="problem of its own"):
        open_corpus(["hub:alice/secret"])


def test_training_on_a_dataset(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.add("a/tales", {"train.jsonl": records(STORIES * 20)}, kind="dataset")
    with pytest.raises(SystemExit) as ended:
        main(["train", "hub:a/tales:train:story", "--preset", "small", "--max-steps", "2", "--run-dir", "run",
              "--set", "model.d_model=16", "--set", "model.num_layers=1"])  # fmt: skip
    shown = capsys.readouterr()
    assert ended.value.code == 0, shown.err
    assert "Fetching 0.1 MB of a/tales from the Hub" in shown.err
    lm = fl.load("run", "cpu")
    assert lm.config.data.source == ("hub:a/tales:train:story",)
