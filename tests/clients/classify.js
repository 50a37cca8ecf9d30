// Probabilities by class name of every text, from an exported folder: {dtype: [{label: probability}]}. `client` is the
// module of transformers.js; `own`: the architecture is nanonet's own, which transformers.js has no name for.

async function load(client, name, dtype, own) {
  if (!own) return client.pipeline("text-classification", name, { dtype });
  const model = await client.AutoModel.from_pretrained(name, { dtype });
  const tokenizer = await client.AutoTokenizer.from_pretrained(name);
  return new client.TextClassificationPipeline({ task: "text-classification", model, tokenizer });
}

export async function classify(client, root, { name, texts, own }) {
  client.env.allowRemoteModels = false;
  client.env.allowLocalModels = true;
  client.env.localModelPath = root;
  const found = {};
  for (const dtype of ["fp32", "q8"]) {
    const run = await load(client, name, dtype, own);
    found[dtype] = [];
    for (const text of texts) {
      const rows = await run(text, { top_k: null });
      found[dtype].push(Object.fromEntries(rows.map(({ label, score }) => [label, score])));
    }
    found[`${dtype} batch`] = (await run(texts, { top_k: null })).map((rows) =>
      Object.fromEntries(rows.map(({ label, score }) => [label, score])),
    );
  }
  return found;
}
