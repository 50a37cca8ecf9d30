"""The adapters compile without a graph break, but for Liger's, which look at how their input was made."""

import pytest
import torch

from nanonet.compat import distillkit, speculators, torchtune, trl

LABELLED = [
    lambda s, t, y: trl.generalized_jsd_loss(s, t, y, beta=0.25, temperature=2.0),
    lambda s, t, y: trl.generalized_jsd_loss(s, t, y, reduction="sum", num_items_in_batch=5),
    torchtune.ForwardKLLoss(),
    torchtune.SymmetricKLLoss(0.3),
    lambda s, t, y: torchtune.ReverseKLWithChunkedOutputLoss(2)(s.chunk(2, 1), t.chunk(2, 1), y),
    lambda s, t, y: distillkit.dense_tvd(s, t, y != -100, 2.0),
    lambda s, t, y: speculators.lk_hybrid_loss(s, t).mean(),
    lambda s, t, y: speculators.ce_loss(s, t).sum(),
]


@pytest.mark.parametrize("loss", LABELLED)
def test_compiles_without_a_graph_break(loss, draw):
    student, teacher, labels = draw(2, 4, 9)
    torch._dynamo.reset()
    results = []
    for fn in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        value = fn(student * 1.5, teacher, labels)
        results.append((value.detach(), torch.autograd.grad(value, student)[0]))
    torch.testing.assert_close(results[0], results[1])
