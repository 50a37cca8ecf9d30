"""Recipes: a teacher's top-k log-probabilities on disk, and students trained from them; a frozen teacher head."""

from collections import OrderedDict

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.causal import VOCABULARY, collate, make_model, make_rows
from transformers import Trainer

from nanonet import TopK, distill_linear_loss, distill_loss

K = 16
ONLY_TEACHER = (0.0, 1.0, 0.0)


@torch.no_grad()
def write(teacher, rows, folder, rows_a_shard=3):
    """The teacher's program: shards of ids (rows,T,k) int32 and logprobs (rows,T,k) float16; their bytes a token."""
    for begin in range(0, len(rows), rows_a_shard):
        batch = collate(rows[begin : begin + rows_a_shard])
        batch.pop("labels")
        top = teacher(**batch).logits.log_softmax(-1).topk(K)
        tensors = {"ids": top.indices.int(), "logprobs": top.values.half().clamp_max(0)}
        save_file(tensors, folder / f"{begin:08d}.safetensors")
    return sum(t[0, 0].nbytes for t in tensors.values())


class FromDisk(torch.utils.data.Dataset):
    """The rows, each with its teacher; of a shard only what a row needs is read."""

    def __init__(self, rows, folder):
        self.rows, self.places = rows, []
        for path in sorted(folder.glob("*.safetensors")):
            shard = safe_open(path, "pt")  # memory-mapped
            self.places += [(shard, i) for i in range(shard.get_slice("ids").get_shape()[0])]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, n):
        shard, i = self.places[n]
        known = {f"teacher_{name}": shard.get_slice(name)[i] for name in ("ids", "logprobs")}
        return self.rows[n] | known


def loss_from_disk(outputs, labels, teacher):
    """The mean over the tokens that have a label, after the shift."""
    after = labels[:, 1:]
    known = TopK(teacher["teacher_ids"][:, :-1], teacher["teacher_logprobs"][:, :-1])
    logits = [one.logits[:, :-1] for one in outputs]
    loss, means = distill_loss(logits, known, row_weight=after != -100, weights=ONLY_TEACHER)
    return loss, means


class TopKTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        known = {name: inputs.pop(name) for name in ("teacher_ids", "teacher_logprobs")}
        outputs = model(**{name: x for name, x in inputs.items() if name != "labels"})
        loss, _ = loss_from_disk([outputs], inputs["labels"], known)
        return (loss, outputs) if return_outputs else loss


def test_a_student_is_trained_from_the_file_by_the_plain_trainer(arguments, tmp_path):
    teacher, rows = make_model(1), make_rows(8)
    assert write(teacher, rows, tmp_path) == 6 * K  # bytes a token: int32 and float16
    given = arguments(max_steps=25, remove_unused_columns=False)
    trainer = TopKTrainer(make_model(0), given, train_dataset=FromDisk(rows, tmp_path), data_collator=collate)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])


def test_students_of_different_sizes_from_one_file_are_those_trained_alone(tmp_path):
    rows = make_rows(4)
    write(make_model(1), rows, tmp_path)
    data = FromDisk(rows, tmp_path)
    batch = collate([data[n] for n in range(4)])
    known, labels = OrderedDict((n, batch.pop(n)) for n in ("teacher_ids", "teacher_logprobs")), batch.pop("labels")
    students = [make_model(seed, width) for seed, width in ((2, 8), (3, 16), (4, 24))]
    loss, means = loss_from_disk([student(**batch) for student in students], labels, known)
    loss.backward()
    together = [student.model.embed_tokens.weight.grad.clone() for student in students]
    for k, student in enumerate(students):
        student.zero_grad()
        alone, mean = loss_from_disk([student(**batch)], labels, known)
        alone.backward()
        torch.testing.assert_close(mean[1, 0], means[1, k])
        torch.testing.assert_close(student.model.embed_tokens.weight.grad, together[k], rtol=1e-4, atol=1e-6)


def test_hidden_states_with_a_frozen_teacher_head():
    teacher, student, rows = make_model(1, 24).requires_grad_(False), make_model(0), make_rows(8)
    batch = collate(rows)
    labels = batch.pop("labels")[:, 1:]
    optimizer, losses = torch.optim.AdamW(student.parameters(), lr=1e-2), []
    for _ in range(25):
        hidden = student.model(**batch).last_hidden_state[:, :-1]
        with torch.no_grad():
            teacher_hidden = teacher.model(**batch).last_hidden_state[:, :-1]
        loss, _ = distill_linear_loss(
            hidden,
            student.lm_head.weight,
            teacher_hidden,
            teacher.lm_head.weight,
            row_weight=labels != -100,
            weights=ONLY_TEACHER,
            chunk=20,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0] and losses[-1] == pytest.approx(min(losses), rel=0.5)
    logits, known = student(**batch).logits[:, :-1], teacher(**batch).logits[:, :-1]
    assert logits.shape[-1] == VOCABULARY
    whole, _ = distill_loss(logits, known, row_weight=labels != -100, weights=ONLY_TEACHER)
    assert whole.item() < 0.5 * losses[0]
