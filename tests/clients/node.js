// node node.js ROOT REQUEST.json ANSWER.json: the models of the request lie in ROOT.
import fs from "node:fs";
import * as client from "@huggingface/transformers";
import { classify } from "./classify.js";

const [root, request, answer] = process.argv.slice(2);
const found = await classify(client, root, JSON.parse(fs.readFileSync(request, "utf-8")));
fs.writeFileSync(answer, JSON.stringify(found));
