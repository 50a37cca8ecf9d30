"""transformers' Trainer with a teacher: `DistillTrainer(model, args, teacher_model=teacher, ...)`.

The student is any model with `logits` (B,C) or (B,T,C); a causal language model's are shifted against the labels. Or it
is a cohort (`nanonet.cohort`), K students that learn from one another too. Labels of -100 have no hard loss; those of
tokens no soft loss either. Over several processes and accumulated steps each token of a causal language model weighs
the same, as in Trainer; of other models each step does. The teacher is frozen, and sees what the student sees.
Not offered: teachers with another vocabulary, encoder-decoders, DeepSpeed's sharding of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from nanonet.ops import distill_loss


def _logits(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs.logits


class DistillTrainer(Trainer):
    """weights (3,) of the labels' cross-entropy, the teacher's divergence and the peers' (of a cohort).

    `means` (3,K) are the terms of the last step, detached. For metrics a cohort's logits are (B,K,C).
    """

    def __init__(
        self,
        *args: Any,
        teacher_model: nn.Module,
        weights: Sequence[float] = (0.5, 0.5, 0.0),
        temperature: float = 1.0,
        divergence: str = "kl",
        beta: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        teacher_model.requires_grad_(False)
        self.teacher_model = self.accelerator.prepare_model(teacher_model, evaluation_mode=True).eval()
        self.weights = tuple(weights)
        self.options: dict[str, Any] = {"temperature": temperature, "divergence": divergence, "beta": beta}
        model = self.accelerator.unwrap_model(self.model)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.causal = type(base).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        self.model_accepts_loss_kwargs = self.causal  # Trainer counts their tokens, and divides by steps for the others
        self.label_names = self.label_names or ["labels"]  # a cohort's forward has none

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.get("labels")
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**inputs)
        with torch.no_grad():
            teacher = _logits(self.teacher_model(**inputs))
        student = _logits(outputs)
        loss, self.means = self.distill(student, teacher, labels, num_items_in_batch)
        if student.dim() > teacher.dim():  # a cohort's
            outputs = {"logits": student.transpose(0, 1)}
        return (loss, outputs) if return_outputs else loss

    def distill(self, student: Tensor, teacher: Tensor, labels: Tensor | None, items: Any) -> tuple[Tensor, Tensor]:
        """Loss and means of logits (K,...,C) or (...,C) and (...,C), over `items` tokens where they are counted."""
        if self.causal:
            student, teacher = student[..., :-1, :], teacher[..., :-1, :]
            labels = None if labels is None else labels[..., 1:]
        denominators = None
        if items is not None and self.causal:
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            denominators = torch.as_tensor(items, dtype=torch.float32, device=student.device).reshape(1).repeat(2)
            denominators = denominators / processes  # whose gradients are averaged
        return distill_loss(
            student,
            teacher,
            labels,
            weights=self.weights,
            row_weight=None if labels is None or labels.dim() == 1 else labels != -100,
            denominators=denominators,
            **self.options,
        )
