"""Synthetic tasks: rows are those of a plain twin written from their description, for ever."""

from __future__ import annotations

import hashlib
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils.data import DataLoader

from longwave.data import DataSection, ScoredRows, TaskRows, TaskSection, chance, number_tokenizer, prepare_data, solve
from longwave.data.synthetic import ENDLESS

CASES = {
    "default": (TaskSection(name="mqar"), 64),
    "as short as can be": (TaskSection(name="mqar", sizes=[3], vocabulary=8), 12),
    "odd length": (TaskSection(name="mqar", sizes=[1, 2, 5], vocabulary=30, power=0.3), 41),
    "anywhere": (TaskSection(name="mqar", sizes=[4], power=1.0), 100),
    "large vocabulary": (TaskSection(name="mqar", sizes=[2, 16], vocabulary=2048), 128),
    "curriculum": (TaskSection(name="mqar", sizes=[1, 2, 3], stage_rows=2), 20),
    "copy": (TaskSection(name="copy"), 64),
    "copy, as short as can be": (TaskSection(name="copy", sizes=[1, 7], vocabulary=4), 15),
    "copy, curriculum": (TaskSection(name="copy", sizes=[2, 3, 9], stage_rows=3), 20),
}
#: Of the first eight training rows under seed 1 and all scored rows, two of each size, as the plain twin makes them.
GOLDEN = {
    "default": "7d22dc25c8c1368f9fc25c44aa141dfa0884d424fe8464a267a6af7237ac94dc",
    "as short as can be": "617922113014bc9b33c11a451c1149c94a6363b6629afef1aeec2a6eb960053e",
    "odd length": "c3001ff0c1e016bfc8f8b0d8ded615c4e57b0741c6d328736f5d4374c6cacb07",
    "anywhere": "cecfc5ddfdd764765dec474d8ff8f6641e46dd085a29bf517ad10d2b753b062f",
    "large vocabulary": "fbb22dbfc0ae3325d8afc0f87b768074bbfdaac70720fc299767ed81b950cb1a",
    "curriculum": "93355e53637b8d429e9c23608b3dddae228fe75100d0d9115dd7a2b6d78a625f",
    "copy": "6c64722cce91d7eb86d0a0fe6c4616595064d70ec84a9513f7cbc02f2f5d354b",
    "copy, as short as can be": "63b49cbe3c9572828a9820b81efe444fcf405392920bb00b9653c4ada57ef814",
    "copy, curriculum": "2a1fe3dacfc740fe6d10fb7a48fa840824da7fe10cb509eda596fb700c1ef20d",
}
each_case = pytest.mark.parametrize("case", CASES)


class Plain:
    """The twin: whole numbers one after the other."""

    def __init__(self, *place):
        self.state = 0
        for number in place:
            self.state = (self.state + number) % 2**64
            self.state = self.word()

    def word(self):
        """The next word of splitmix64, as published."""
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = self.state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    def below(self, limit):
        return (self.word() >> 32) * limit >> 32

    def some(self, n, count, rate=None):
        """Places of ``n`` in the order in which random waiting times end, the first ``count``."""
        times = [self.word() for _ in range(n)]
        if rate is not None:
            times = [-math.log(((word >> 12) + 0.5) / 2**52) / rate(place) for place, word in enumerate(times)]
        return sorted(range(n), key=times.__getitem__)[:count]


def plain_training_row(task, length, seed, index):
    random = Plain(0, seed, index)
    joined = len(task.sizes)
    if task.stage_rows:
        joined = min(joined, index // task.stage_rows + 1)
    return plain_row(task, length, task.sizes[random.below(joined)], random)


def plain_scored_row(task, length, index):
    size, row = task.sizes[index // task.evaluation_rows], index % task.evaluation_rows
    random = Plain(1, size, row)
    random.word()  # that of the size
    return plain_row(task, length, size, random)


def plain_row(task, length, size, random):
    ids, labels = [0] * length, [-100] * (length + 1)
    if task.name == "copy":
        for place in range(size):
            token = 2 + random.below(task.vocabulary - 2)
            ids[place] = ids[size + 1 + place] = labels[size + 1 + place] = token
        ids[size] = 1
        return {"input_ids": ids, "labels": labels}
    half = task.vocabulary // 2
    keys = [1 + place for place in random.some(half - 1, size)]
    values = [half + place for place in random.some(half, size)]
    slots = random.some((length - 2 * size) // 2, size, lambda slot: (slot + 1) ** (task.power - 1))
    order = random.some(size, size)
    for pair in range(size):
        ids[2 * pair], ids[2 * pair + 1] = keys[pair], values[pair]
    for place in range(2 * size, length):
        ids[place] = random.below(task.vocabulary)
    for slot, pair in zip(slots, order, strict=True):
        place = 2 * size + 2 * slot
        ids[place], labels[place + 1] = keys[pair], values[pair]
    return {"input_ids": ids, "labels": labels}


def listed(row):
    return {"input_ids": row["input_ids"].tolist(), "labels": row["labels"].tolist()}


def answers(row):
    return row["labels"][row["labels"] != -100].tolist()


def size_of(row):
    return int((row["labels"] != -100).sum())


@each_case
def test_training_rows_are_those_of_the_twin(case):
    task, length = CASES[case]
    for seed in (0, 3):
        rows = TaskRows(task, length, seed)
        for index in (*range(12), 1000, 2**31 - 2):
            assert listed(rows[index]) == plain_training_row(task, length, seed, index)


@each_case
def test_scored_rows_are_those_of_the_twin(case):
    task, length = CASES[case]
    rows = ScoredRows(task, length)
    assert len(rows) == 128 * len(task.sizes)
    for index in range(0, len(rows), 37):
        assert listed(rows[index]) == plain_scored_row(task, length, index)


def digest(training, scored):
    return hashlib.sha256(json.dumps([training, scored], sort_keys=True).encode()).hexdigest()


def golden(task, length):
    """What the twin makes of a case, hashed: how the numbers in ``GOLDEN`` were found."""
    task = task.model_copy(update={"evaluation_rows": 2})
    training = [plain_training_row(task, length, 1, index) for index in range(8)]
    return digest(training, [plain_scored_row(task, length, index) for index in range(2 * len(task.sizes))])


@each_case
def test_rows_stay_what_they_have_been(case):
    task, length = CASES[case]
    task = task.model_copy(update={"evaluation_rows": 2})
    training, scored = TaskRows(task, length, 1), ScoredRows(task, length)
    found = digest([listed(training[index]) for index in range(8)], [listed(row) for row in scored])
    assert found == GOLDEN[case]


@each_case
def test_perfect_recall_is_right(case):
    task, length = CASES[case]
    for rows in (TaskRows(task, length, 0).__getitems__(range(200)), ScoredRows(task, length)):
        assert all(solve(task, row) == answers(row) for row in rows)


@each_case
def test_a_row_has_the_form_of_packed_rows(case):
    task, length = CASES[case]
    row = TaskRows(task, length, 0)[3]
    assert {name: (tensor.dtype, len(tensor)) for name, tensor in row.items()} == {
        "input_ids": (torch.int64, length),
        "labels": (torch.int64, length + 1),
        "starts": (torch.bool, length),
    }
    assert row["starts"].nonzero().tolist() == [[0]]
    assert 0 <= row["input_ids"].min() <= row["input_ids"].max() < task.vocabulary


@each_case
def test_a_batch_is_its_rows(case):
    rows = TaskRows(*CASES[case], 0)
    batch = next(iter(DataLoader(rows, batch_size=16)))
    for index in range(16):
        assert all(torch.equal(tensor, batch[name][index]) for name, tensor in rows[index].items())


def test_rows_do_not_depend_on_what_was_read_before():
    task, length = CASES["default"]
    rows, again = TaskRows(task, length, 0), TaskRows(task, length, 0)
    backwards = {index: listed(rows[index]) for index in reversed(range(10))}
    assert all(backwards[index] == listed(again[index]) for index in range(10))


def test_there_is_no_end_to_training_rows_but_a_last_number():
    rows = TaskRows(*CASES["default"], 0)
    assert len(rows) == ENDLESS
    assert size_of(rows[ENDLESS - 1]) in (4, 8, 16)
    for index in (-1, ENDLESS):
        with pytest.raises(IndexError):
            rows[index]


def test_seeds_and_splits_have_nothing_in_common():
    task, length = CASES["default"]
    splits = [TaskRows(task, length, seed).__getitems__(range(300)) for seed in (0, 1)] + [ScoredRows(task, length)]
    keys = [tuple(row["input_ids"].tolist()) for rows in splits for row in rows]
    assert len(set(keys)) == len(keys)


class TestRecall:
    TASK = TaskSection(name="mqar", sizes=[1, 3], vocabulary=20)

    @pytest.fixture
    def rows(self):
        return [listed(row) for row in TaskRows(self.TASK, 40, 0).__getitems__(range(2000))]

    def test_pairs_are_of_different_keys_and_different_values(self, rows):
        for row in rows:
            size = sum(label != -100 for label in row["labels"])
            keys, values = row["input_ids"][0 : 2 * size : 2], row["input_ids"][1 : 2 * size : 2]
            assert len(set(keys)) == len(set(values)) == size
            assert all(1 <= key < 10 <= value < 20 for key, value in zip(keys, values, strict=True))

    def test_every_key_is_queried_once_at_an_even_place_behind_the_pairs(self, rows):
        for row in rows:
            places = [place for place, label in enumerate(row["labels"][1:]) if label != -100]
            size = len(places)
            assert sorted(row["input_ids"][place] for place in places) == sorted(row["input_ids"][0 : 2 * size : 2])
            assert all(place % 2 == 0 and place >= 2 * size for place in places)

    def test_keys_values_and_other_tokens_are_even(self, rows):
        firsts = [row["input_ids"][0] for row in rows], [row["input_ids"][1] for row in rows]
        lasts = [row["input_ids"][-1] for row in rows]
        for found, begin, end in ((firsts[0], 1, 10), (firsts[1], 10, 20), (lasts, 0, 20)):
            counts = np.bincount(found, minlength=end)[begin:]
            expected = len(rows) / (end - begin)
            assert len(counts) == end - begin
            assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)

    def test_queries_are_in_random_order(self, rows):
        orders = {}
        for row in rows:
            if len(solved := [label for label in row["labels"] if label != -100]) == 3:
                order = tuple(row["input_ids"][1:6:2].index(value) for value in solved)
                orders[order] = orders.get(order, 0) + 1
        expected = sum(orders.values()) / 6
        assert len(orders) == 6
        assert all(abs(count - expected) < 5 * math.sqrt(expected) for count in orders.values())

    @pytest.mark.parametrize("power", [0.01, 0.5, 1.0])
    def test_places_of_queries_follow_the_power_law(self, power):
        task = TaskSection(name="mqar", sizes=[1], power=power)
        rows = TaskRows(task, 22, 0).__getitems__(range(8000))
        slots = [(int((row["labels"] != -100).nonzero()) - 3) // 2 for row in rows]
        weights = np.arange(1, 11) ** (power - 1.0)
        expected = 8000 * weights / weights.sum()
        assert (np.abs(np.bincount(slots, minlength=10) - expected) < 5 * np.sqrt(expected)).all()

    def test_places_are_drawn_one_after_the_other(self):
        # Of three slots two: the one left out is 1, 2, 3 with probabilities that follow from two draws.
        task = TaskSection(name="mqar", sizes=[2], power=0.5)
        rows = TaskRows(task, 10, 0).__getitems__(range(8000))
        used = [{(place - 5) // 2 for place in (row["labels"] != -100).nonzero().flatten().tolist()} for row in rows]
        weights = np.arange(1, 4) ** -0.5
        p = weights / weights.sum()
        for left in range(3):
            a, b = (slot for slot in range(3) if slot != left)
            expected = 8000 * (p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b]))
            assert abs(sum(left not in slots for slots in used) - expected) < 5 * math.sqrt(expected)


class TestCopy:
    def test_content_separator_content_and_nothing(self):
        task, length = CASES["copy"]
        for row in map(listed, TaskRows(task, length, 0).__getitems__(range(100))):
            size = sum(label != -100 for label in row["labels"])
            content = row["input_ids"][:size]
            assert min(content) >= 2
            assert row["input_ids"] == [*content, 1, *content, *[0] * (length - 2 * size - 1)]
            assert row["labels"] == [*[-100] * (size + 1), *content, *[-100] * (length - 2 * size)]


class TestSizes:
    @pytest.mark.parametrize("name", ["mqar", "copy"])
    def test_sizes_join_stage_by_stage(self, name):
        task = TaskSection(name=name, sizes=[1, 2, 4], stage_rows=40)
        sizes = [size_of(row) for row in TaskRows(task, 32, 0).__getitems__(range(200))]
        assert set(sizes[:40]) == {1}
        assert set(sizes[40:80]) == {1, 2}
        assert set(sizes[80:120]) == set(sizes[120:]) == {1, 2, 4}

    def test_sizes_are_even(self):
        task = TaskSection(name="copy", sizes=[1, 2, 4])
        sizes = [size_of(row) for row in TaskRows(task, 32, 0).__getitems__(range(3000))]
        assert np.abs(np.bincount(sizes, minlength=5)[[1, 2, 4]] - 1000).max() < 5 * math.sqrt(1000)

    def test_scored_rows_come_size_by_size(self):
        rows = ScoredRows(TaskSection(name="mqar", sizes=[1, 3], evaluation_rows=5), 16)
        assert [size_of(row) for row in rows] == rows.sizes.tolist() == [1] * 5 + [3] * 5

    def test_scored_rows_do_not_depend_on_the_other_sizes_nor_on_their_number(self):
        one, other = (
            ScoredRows(TaskSection(name="mqar", sizes=sizes, evaluation_rows=count, stage_rows=count), 16)
            for sizes, count in (([1, 3], 5), ([2, 3], 4))
        )
        assert [listed(one[5 + index]) for index in range(4)] == [listed(other[4 + index]) for index in range(4)]


def test_chance_is_one_in_the_tokens_that_may_be_an_answer():
    task = TaskSection(name="mqar", vocabulary=20, sizes=[2])
    assert chance(task) == 1 / len({answer for row in ScoredRows(task, 8) for answer in answers(row)})
    task = TaskSection(name="copy", vocabulary=20, sizes=[2])
    assert chance(task) == 1 / len({answer for row in ScoredRows(task, 8) for answer in answers(row)})


class TestTokenizer:
    def test_a_token_is_its_number(self):
        tokenizer = number_tokenizer(256)
        assert len(tokenizer) == 256
        assert tokenizer("12 200  10\n0 100")["input_ids"] == [12, 200, 10, 0, 100]
        assert tokenizer.decode([12, 200, 0]) == " 12 200 0"
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 0)

    def test_what_is_no_token_is_token_0(self):
        assert number_tokenizer(256)("256 twelve 3 -1")["input_ids"] == [0, 0, 3, 0]

    def test_it_can_be_saved_and_loaded(self, tmp_path):
        from transformers import AutoTokenizer

        number_tokenizer(256).save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        assert len(tokenizer) == 256
        assert tokenizer("100 0 10")["input_ids"] == [100, 0, 10]
        assert tokenizer.decode([12, 200]) == " 12 200"


class TestPreparation:
    @pytest.fixture
    def prepare(self):
        def of(seed=0, sequence_length=32, **task):
            settings = DataSection(task={"name": "mqar", "sizes": [2], **task}, sequence_length=sequence_length)
            data = prepare_data(settings, "byte", seed)
            return SimpleNamespace(
                sha256=data.sha256,
                vocabulary=len(data.tokenizer),
                train=listed(data.train[0]),
                scored=[listed(row) for row in data.valid],
            )

        return of

    def test_the_seed_is_of_the_training_rows_alone(self, prepare):
        one, other = prepare(seed=0), prepare(seed=1)
        assert one.train != other.train
        assert one.scored == other.scored
        assert one.sha256 == other.sha256

    def test_the_vocabulary_is_that_of_the_task(self, prepare):
        assert prepare(vocabulary=30).vocabulary == 30

    @pytest.mark.parametrize(
        "change",
        [{"name": "copy"}, {"sizes": [1]}, {"power": 0.5}, {"stage_rows": 1}, {"sequence_length": 33}],
        ids=str,
    )
    def test_the_hash_knows_every_setting_and_the_length(self, prepare, change):
        assert prepare(**change).sha256 != prepare().sha256

    def test_settings_can_be_written_and_read_again(self):
        settings = DataSection(task={"name": "copy", "sizes": [3]})
        assert DataSection.model_validate(settings.model_dump(mode="json")) == settings


class TestComplaints:
    @pytest.mark.parametrize("rows", [lambda task: TaskRows(task, 15, 0), lambda task: ScoredRows(task, 15)])
    def test_rows_that_are_too_short_are_refused(self, rows):
        with pytest.raises(ValueError, match="mqar of size 4 needs a sequence_length of 16, got 15"):
            rows(TaskSection(name="mqar", sizes=[2, 4]))

    def test_a_task_goes_with_no_mix(self):
        with pytest.raises(ValidationError, match=r"leave data\.train at embedded, got \[WeightedSource"):
            DataSection(task={"name": "mqar"}, train=[{"source": "embedded"}])

    def test_exactly_enough_tokens_and_length_are_enough(self):
        ScoredRows(TaskSection(name="mqar", sizes=[4], vocabulary=10), 16)
        with pytest.raises(ValidationError, match="4 pairs need a vocabulary of at least 10, got 8"):
            TaskSection(name="mqar", sizes=[4], vocabulary=8)
