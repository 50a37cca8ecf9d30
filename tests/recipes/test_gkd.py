"""Recipe: TRL's GKDTrainer with our loss patched in. It logs what TRL's own logs."""

import os

import pytest
import torch
from support.causal import make_model, make_rows
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, default_data_collator

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
gkd = pytest.importorskip("trl.experimental.gkd", reason="trl is not installed (pip install trl; tried with 1.16)")
datasets = pytest.importorskip("datasets", reason="datasets, which trl needs, is not installed")

from nanonet.compat import trl as compat  # noqa: E402


@pytest.fixture
def tokenizer():
    words = {"<pad>": 0, "<unk>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 61)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_max_length=32
    )


def train(arguments, tokenizer, beta, accumulation, **options):
    args = arguments(
        gkd.GKDConfig,
        beta=beta,
        lmbda=0.0,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=4 // accumulation,
        per_device_eval_batch_size=2,
        bf16=False,
        gradient_checkpointing=False,
        **options,
    )
    rows = [{name: value.tolist() for name, value in row.items()} for row in make_rows(8)]
    trainer = gkd.GKDTrainer(
        model=make_model(0),
        teacher_model=make_model(1),
        args=args,
        data_collator=default_data_collator,
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=datasets.Dataset.from_list(rows[:3]),
        processing_class=tokenizer,
    )
    trainer.train()
    evaluated = trainer.evaluate()["eval_loss"]
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return [*losses, evaluated], [p.detach().clone() for p in trainer.model.parameters()]


@pytest.mark.parametrize("beta", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_logged_losses_are_trls_own(beta, accumulation, arguments, tokenizer, monkeypatch):
    own, calls = compat.generalized_jsd_loss, []

    def counted(*given, **options):
        calls.append(options)
        return own(*given, **options)

    theirs = train(arguments, tokenizer, beta, accumulation)
    monkeypatch.setattr(compat, "generalized_jsd_loss", counted)
    with compat.patched():
        ours = train(arguments, tokenizer, beta, accumulation)
    assert len(calls) == 3 * accumulation + 2 and len(ours[0]) == 4
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5, abs=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=2e-4)


def test_the_patch_is_undone():
    before = gkd.GKDTrainer.generalized_jsd_loss
    with compat.patched():
        assert gkd.GKDTrainer.generalized_jsd_loss is compat.generalized_jsd_loss
    assert gkd.GKDTrainer.generalized_jsd_loss is before
    assert compat.patch().__func__ is before
    gkd.GKDTrainer.generalized_jsd_loss = staticmethod(before)
