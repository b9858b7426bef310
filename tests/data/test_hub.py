"""Datasets of the hub, shown on local folders of the same form."""

from __future__ import annotations

import json

import pytest

from longwave.data import read_corpus

TEXTS = {"train": ["one", " ", "two", "three"], "validation": ["four"]}


@pytest.fixture(scope="module", autouse=True)
def arrow_cache(tmp_path_factory):
    """Datasets are converted into a folder of the test's own."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("arrow"))
        yield


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for split, texts in TEXTS.items():
        lines = (json.dumps({"text": text, "title": text.upper()}) + "\n" for text in texts)
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


streamed_or_not = pytest.mark.parametrize("streaming", [False, True], ids=["here", "streamed"])


@streamed_or_not
def test_each_split_has_its_rows_in_order(dataset, streaming):
    train = read_corpus(f"hf:{dataset}", streaming=streaming)
    valid = read_corpus(f"hf:{dataset}", split="validation", streaming=streaming)
    assert list(train.documents) == list(train.documents) == ["one", "two", "three"]
    assert list(valid.documents) == ["four"]


@streamed_or_not
def test_the_field_of_the_text_can_be_named(dataset, streaming):
    corpus = read_corpus(f"hf:{dataset}", text_field="title", streaming=streaming)
    assert list(corpus.documents) == ["ONE", "TWO", "THREE"]


def test_a_configuration_follows_the_name(dataset):
    (dataset / "README.md").write_text(
        "---\nconfigs:\n- {config_name: all, data_files: '*.jsonl'}\n"
        "- {config_name: some, data_files: 'validation.jsonl'}\n---\n"
    )
    assert list(read_corpus(f"hf:{dataset}/some").documents) == ["four"]


def test_a_dataset_that_is_here_knows_its_files(dataset):
    first, second = (read_corpus(f"hf:{dataset}").signature() for _ in range(2))
    assert first == second is not None
    assert first != read_corpus(f"hf:{dataset}", text_field="title").signature()
    assert read_corpus(f"hf:{dataset}", streaming=True).signature() is None


@streamed_or_not
def test_a_field_that_is_not_there_is_refused_with_those_that_are(dataset, streaming):
    with pytest.raises(ValueError, match=r"set(: row 1)?: no field 'body'; there are: text, title"):
        list(read_corpus(f"hf:{dataset}", text_field="body", streaming=streaming).documents)


def test_a_split_that_is_not_there_is_refused(dataset):
    (dataset / "validation.jsonl").unlink()
    with pytest.raises(ValueError, match=r"set: the split 'validation' cannot be loaded: .*train"):
        read_corpus(f"hf:{dataset}", split="validation")


def test_text_that_is_none_is_refused_with_its_row(dataset):
    (dataset / "train.jsonl").write_text('{"text": "x", "title": ""}\n{"text": null, "title": ""}\n')
    with pytest.raises(ValueError, match="set: row 2: field 'text' is no text but NoneType"):
        list(read_corpus(f"hf:{dataset}").documents)


def test_a_dataset_without_text_is_refused(dataset):
    (dataset / "train.jsonl").write_text('{"text": " ", "title": ""}\n')
    with pytest.raises(ValueError, match="set: the dataset holds no text"):
        list(read_corpus(f"hf:{dataset}").documents)


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(dataset):
    (dataset / "train.jsonl").write_text('{"text": "x", "title": ""}\n{"text": broken}\n')
    with pytest.raises(ValueError, match=r"set: the split 'train' cannot be loaded: .*JSON"):
        read_corpus(f"hf:{dataset}")


def test_an_unknown_name_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^hf:nobody/nothing: the split 'train' cannot be loaded: .") as error:
        read_corpus("hf:nobody/nothing")
    assert "\n" not in str(error.value)


def test_no_name_is_refused():
    with pytest.raises(ValueError, match="hf:: names no dataset; legal: hf:NAME, hf:NAME/CONFIG"):
        read_corpus("hf:")


def test_reading_draws_no_bars(dataset, capfd):
    list(read_corpus(f"hf:{dataset}").documents)
    assert capfd.readouterr() == ("", "")
