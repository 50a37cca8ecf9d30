"""How to load an exported folder: the part of its card that is code."""

from __future__ import annotations

import json
from collections.abc import Iterator

from nanonet.inference.classifier import Classifier
from nanonet.inference.onnx_model import FLOAT, QUANTIZED

TEXT, SECOND = "a text to classify", "the text beside it"
OWN_TYPE = """\
`config.json` names nanonet's own architecture `{kind}`. transformers knows it after `import {module}`; Optimum and
transformers.js run the ONNX file, which needs no such name, when they are told so as below."""

TRANSFORMERS = """\
{imported}from transformers import pipeline

classify = pipeline("text-classification", model=folder, tokenizer=folder)
print(classify({text}, top_k=None, truncation=True))"""

ONNXRUNTIME = """\
import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

labels = json.load(open(f"{{folder}}/config.json", encoding="utf-8"))["id2label"]
tokenizer = Tokenizer.from_file(f"{{folder}}/tokenizer.json")
tokenizer.enable_truncation({max_tokens}{left})
tokenizer.enable_padding(pad_id={pad_id}, pad_token={pad_token})
session = onnxruntime.InferenceSession(f"{{folder}}/{file}")

rows = tokenizer.encode_batch([{row}])
found = {{"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}}
inputs = {{i.name: np.array([getattr(row, found[i.name]) for row in rows]) for i in session.get_inputs()}}
(logits,) = session.run(["logits"], inputs)
p = np.exp(logits - logits.max(-1, keepdims=True))
for row in p / p.sum(-1, keepdims=True):
    print(labels[str(row.argmax())], row.max())"""

OPTIMUM = """\
from optimum.onnxruntime import ORTModelForSequenceClassification
from transformers import {classes}, pipeline

model = ORTModelForSequenceClassification.from_pretrained(folder, {config}subfolder="onnx", file_name="{file}")
tokenizer = {tokenizer}.from_pretrained(folder)
classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
print(classify({text}, top_k=None, truncation=True))"""

JAVASCRIPT = """\
import {{ pipeline }} from "@huggingface/transformers";

const classify = await pipeline("text-classification", folder, {{ dtype: "q8" }});
console.log(await classify({text}, {{ top_k: null }}));"""

JAVASCRIPT_OWN_TYPE = """\
import {{ AutoModel, AutoTokenizer, TextClassificationPipeline }} from "@huggingface/transformers";

const model = await AutoModel.from_pretrained(folder, {{ dtype: "q8" }});
const tokenizer = await AutoTokenizer.from_pretrained(folder);
const classify = new TextClassificationPipeline({{ task: "text-classification", model, tokenizer }});
console.log(await classify({text}, {{ top_k: null }}));"""

JAVASCRIPT_PAIRS = """\
import {{ AutoModel, AutoTokenizer, softmax }} from "@huggingface/transformers";

const model = await AutoModel.from_pretrained(folder, {{ dtype: "q8" }});
const tokenizer = await AutoTokenizer.from_pretrained(folder);
const settings = {{ text_pair: {second}, truncation: true, return_token_type_ids: true }};
const {{ logits }} = await model(tokenizer({first}, settings));
console.log(model.config.id2label, softmax(logits.data));"""


def usage(classifier: Classifier, custom: bool) -> Iterator[str]:
    """The paragraphs; custom: the architecture is nanonet's own."""
    module, tokenizer = type(classifier.model).__module__, classifier.tokenizer
    words = {
        "text": json.dumps({"text": TEXT, "text_pair": SECOND} if classifier.pairs else TEXT),
        "row": f"({json.dumps(TEXT)}, {json.dumps(SECOND)})" if classifier.pairs else json.dumps(TEXT),
        "first": json.dumps(TEXT),
        "second": json.dumps(SECOND),
        "imported": f"import {module}  # noqa: F401\n" if custom else "",
        "max_tokens": classifier.max_tokens,
        "left": ', direction="left"' if tokenizer.truncation_side == "left" else "",
        "pad_id": tokenizer.pad_token_id,
        "pad_token": repr(tokenizer.pad_token),
        "file": FLOAT,
        "classes": "PretrainedConfig, PreTrainedTokenizerFast" if custom else "AutoTokenizer",
        "config": "config=PretrainedConfig.from_pretrained(folder), " if custom else "",
        "tokenizer": "PreTrainedTokenizerFast" if custom else "AutoTokenizer",
    }
    yield "## Use"
    yield "`folder` is the path of this folder, or its name on the hub."
    if custom:
        yield OWN_TYPE.format(kind=classifier.model.config.model_type, module=module)
    yield from _section("transformers", "python", TRANSFORMERS, words)
    yield from _section("onnxruntime", "python", ONNXRUNTIME, words)
    yield from _section("Optimum", "python", OPTIMUM, words | {"file": FLOAT.rpartition("/")[2]})
    javascript = JAVASCRIPT_PAIRS if classifier.pairs else JAVASCRIPT_OWN_TYPE if custom else JAVASCRIPT
    yield from _section("transformers.js", "js", javascript, words)
    yield (
        f'`dtype: "q8"` is `{QUANTIZED}`, `"fp32"` is `{FLOAT}`. transformers.js cuts a longer text without its last'
        " special token; its probabilities may differ a little there."
    )


def _section(name: str, language: str, code: str, words: dict) -> Iterator[str]:
    yield f"### {name}"
    yield f"```{language}\n{code.format(**words)}\n```"
