// Probabilities by class name of every text, from exported folders in `root`: {name: {dtype: [{label: probability}]}}.
// `client` is the module of transformers.js; `own` names the folders whose architecture is nanonet's own, for which
// transformers.js has no name.

async function load(client, name, dtype, own) {
  if (!own) return client.pipeline("text-classification", name, { dtype });
  const model = await client.AutoModel.from_pretrained(name, { dtype });
  const tokenizer = await client.AutoTokenizer.from_pretrained(name);
  return new client.TextClassificationPipeline({ task: "text-classification", model, tokenizer });
}

const table = (rows) => Object.fromEntries(rows.map(({ label, score }) => [label, score]));

export async function classify(client, root, { names, texts, own }) {
  client.env.allowRemoteModels = false;
  client.env.allowLocalModels = true;
  client.env.localModelPath = root;
  const found = {};
  for (const name of names) {
    const forms = (found[name] = {});
    for (const dtype of ["fp32", "q8"]) {
      const run = await load(client, name, dtype, own.includes(name));
      forms[dtype] = [];
      for (const text of texts) forms[dtype].push(table(await run(text, { top_k: null })));
      forms[`${dtype} batch`] = (await run(texts, { top_k: null })).map(table);
    }
  }
  return found;
}
