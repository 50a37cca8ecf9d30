"""Other programs read an exported folder, and give the probabilities of the model itself.

Node, Chromium and Optimum run apart from this Python: what they need is installed into a temporary folder, and where
that is not to be had, the test is skipped.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.browser import ask_page
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import nanonet
from nanonet.config.commands import ExportConfig
from nanonet.inference.export import export
from nanonet.inference.onnx_graph import NEEDED
from nanonet.inference.onnx_model import QUANTIZED
from nanonet.models.cnn import CnnConfig, CnnForSequenceClassification
from nanonet.models.static import StaticConfig, StaticForSequenceClassification

pytestmark = pytest.mark.skipif(
    any(__import__("importlib.util").util.find_spec(name) is None for name in NEEDED), reason="needs nanonet[onnx]"
)
CLIENTS = Path(__file__).parents[1] / "clients"
CLASSES = ["World", "Sports", "Sci/Tech"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "the cat sat on mat dog ran over hill rain fell caf ##es ##s , . 12 ##3".split()
# of one word and of many; capitals, accents, unknown characters, pieces of words, a name of a special token
TEXTS = ["cat", "The cats sat on the mat, 123.", "Cafés 中文 😀 rain fell", "[SEP] dog " + "ran over the hill " * 5]
TOLERANCE = {"fp32": 1e-3, "q8": 2e-2}
KINDS = {
    "bert": (
        BertForSequenceClassification,
        BertConfig,
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "initializer_range": 0.1,
        },
    ),
    "cnn": (CnnForSequenceClassification, CnnConfig, {"embedding_size": 16, "hidden_size": 16, "dense_size": 16}),
    "static": (
        StaticForSequenceClassification,
        StaticConfig,
        {"embedding_size": 32, "dense_size": 32, "first_pieces": 9},
    ),
}


REQUEST = json.dumps({"names": list(KINDS), "texts": TEXTS, "own": ["cnn", "static"]})


def word_pieces() -> PreTrainedTokenizerFast:
    tokens = [*SPECIAL, *WORDS, *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The exported folder of a model of that kind with random weights; its own folder is `../<kind>-model`."""
    root, tokenizer = tmp_path_factory.mktemp("models"), word_pieces()

    def make(kind: str) -> Path:
        if not (root / kind).exists():
            model_type, config_type, sizes = KINDS[kind]
            names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
            torch.manual_seed(0)
            model = model_type(config_type(vocab_size=len(tokenizer), **sizes, **names)).eval()
            with torch.no_grad():  # probabilities that differ by text
                model.classifier.weight.copy_(torch.randn_like(model.classifier.weight) / 4)
            model.save_pretrained(root / f"{kind}-model")
            tokenizer.save_pretrained(root / f"{kind}-model")
            export(ExportConfig(model=str(root / f"{kind}-model"), output=str(root / kind)))
        return root / kind

    return make


def check(folder: Path, found: dict[str, Any]) -> None:
    """Every form of the answers, one text at a time and all in a batch, is what the model itself says."""
    model = nanonet.load(folder.with_name(f"{folder.name}-model"))
    wanted = model.predict_proba(TEXTS)
    assert wanted.std(0).max() > 0.02  # a constant answer would not pass
    assert set(found) == {"fp32", "fp32 batch", "q8", "q8 batch"}
    for form, answers in found.items():
        got = np.array([[row[name] for name in model.classes] for row in answers])
        assert abs(got - wanted).max() <= TOLERANCE[form.split()[0]], (folder.name, form)
        assert (got.argmax(1) == wanted.argmax(1)).all(), (folder.name, form)


@pytest.fixture
def ask(exported: Callable[[str], Path], tmp_path: Path) -> Callable[[list[Path | str], Path], None]:
    """Run a client that answers for all kinds of models, and check its answers."""

    def run(words: list[Path | str], place: Path) -> None:
        folders = [exported(kind) for kind in KINDS]
        files = tmp_path / "request.json", tmp_path / "answer.json"
        files[0].write_text(REQUEST)
        every = list(map(str, [*words, folders[0].parent, *files]))
        done = subprocess.run(every, cwd=place, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads(files[1].read_text())
        for folder in folders:
            check(folder, found[folder.name])

    return run


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the clients' pages and scripts, and transformers.js beside them."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {missing[0]}")
    folder = tmp_path_factory.mktemp("js") / "clients"
    shutil.copytree(CLIENTS, folder)
    # without scripts: one of them would download a GPU's library
    words = "npm install --ignore-scripts --no-audit --no-fund --prefer-offline".split()
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm cannot install transformers.js: {done.stderr.strip().splitlines()[0]:.100}")
    return folder


@pytest.mark.slow
def test_node(ask: Callable[..., None], packages: Path) -> None:
    ask(["node", "node.js"], packages)


@pytest.mark.slow
def test_browser(exported: Callable[[str], Path], packages: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium")
    folders = [exported(kind) for kind in KINDS]
    (packages / "request.json").write_text(REQUEST)
    (packages / "models").symlink_to(folders[0].parent)
    found = ask_page(chromium, packages, limit_s=240)
    for folder in folders:
        check(folder, found[folder.name])


@pytest.fixture(scope="module")
def optimum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with Optimum and the transformers 4 that it wants, over the packages of this one."""
    folder = tmp_path_factory.mktemp("optimum")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    own = next(folder.glob("lib/python*/site-packages"))
    (own / "outer.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    words = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "optimum-onnx[onnxruntime]"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400)
    if done.returncode:
        pytest.skip(f"pip cannot install optimum-onnx: {done.stderr.strip().splitlines()[-1]:.100}")
    return folder / "bin" / "python"


@pytest.mark.slow
def test_optimum(ask: Callable[..., None], optimum: Path, tmp_path: Path) -> None:
    ask([optimum, CLIENTS / "optimum_client.py"], tmp_path)


@pytest.mark.parametrize("kind", ["bert", pytest.param("cnn", marks=pytest.mark.slow), "static"])
def test_onnxruntime_by_the_code_of_the_card(kind: str, exported: Callable[[str], Path]) -> None:
    folder = exported(kind)
    code = re.search(r"### onnxruntime\n\n```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    model = nanonet.load(folder.with_name(f"{kind}-model"))
    assert code
    said: list[tuple[str, float]] = []
    for text in TEXTS:
        program = code[1].replace('"a text to classify"', repr(text))
        exec(program, {"folder": str(folder), "print": lambda *words: said.append(words)})
        p = model.predict_proba([text])[0]
        assert said.pop() == (model.classes[p.argmax()], pytest.approx(float(p.max()), abs=TOLERANCE["fp32"]))


@pytest.mark.parametrize("kind", ["bert", pytest.param("cnn", marks=pytest.mark.slow), "static"])
def test_nanonet_itself(kind: str, exported: Callable[[str], Path]) -> None:
    folder = exported(kind)
    wanted = nanonet.load(folder.with_name(f"{kind}-model")).predict_proba(TEXTS)
    assert abs(nanonet.load(folder).predict_proba(TEXTS) - wanted).max() < 1e-4
    assert abs(nanonet.load(folder / QUANTIZED).predict_proba(TEXTS) - wanted).max() <= TOLERANCE["q8"]
