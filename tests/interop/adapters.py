"""Low-rank adapters of every family: PEFT trains and saddle merges, saddle trains and PEFT loads."""

import json
import random
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from families import VOCABULARY, configs, random_model, small_tokenizer
from scores import tokens
from tools import Bench, run, their_logits, PROFILE

LIMIT = 1e-4


def check(bench: Bench) -> None:
    draw = random.Random(5)
    tokenizer = small_tokenizer()
    for seed, (name, config) in enumerate(configs(draw)):
        if not name.endswith(" 0"):
            continue
        folder = bench.work / f"adapters-{name}".replace(" ", "-")
        model = random_model(config, seed)
        model.save_pretrained(folder / "theirs")
        tokenizer.save_pretrained(folder / "theirs")
        base = bench.move("import", folder / "theirs", folder / "base")
        lists = [[draw.randrange(VOCABULARY) for _ in range(length)] for length in (1, 7, 24, 60)]
        plain = torch.cat(their_logits(model, lists))
        theirs(bench, name, folder, model, lists, plain, stabilised=seed % 2 == 0)
        ours(bench, name, folder, base, lists, plain)
        scores(bench, name, folder, base, tokenizer)


def theirs(bench: Bench, name: str, folder: Path, model, lists: list, plain: torch.Tensor, stabilised: bool) -> None:
    """PEFT's adapters, every number random, merged by saddle."""
    lora = LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", task_type="CAUSAL_LM", use_rslora=stabilised)
    adapted = get_peft_model(model, lora).eval()
    for parameter, weight in adapted.named_parameters():
        if "lora_" in parameter:
            weight.copy_(0.2 * torch.randn_like(weight))
    adapted.save_pretrained(folder / "their-adapter")
    expected = torch.cat(their_logits(adapted, lists))
    merged = bench.move("export", folder / "base", folder / "merged", "--adapter", str(folder / "their-adapter"))
    far_apart(bench, f"{name}, PEFT's adapters do something", expected, plain)
    bench.near(f"{name}, PEFT's adapters merged", torch.cat(bench.logits(merged, lists)), expected, LIMIT)


def ours(bench: Bench, name: str, folder: Path, base: Path, lists: list, plain: torch.Tensor) -> None:
    """Adapters that saddle trained, loaded by PEFT, against the model that saddle merged them into."""
    rows = [{"instruction": word, "input": "", "output": word[::-1]} for word in ("fox", "dog", "lazy", "quick")]
    trained = train(folder, "sft", base, rows, "alpaca")
    adapted = PeftModel.from_pretrained(load(AutoModelForCausalLM, base), trained / "adapter").eval()
    expected = torch.cat(their_logits(adapted, lists))
    far_apart(bench, f"{name}, saddle's adapters do something", expected, plain)
    bench.near(f"{name}, saddle's adapters in PEFT", torch.cat(bench.logits(trained / "model", lists)), expected, LIMIT)


def scores(bench: Bench, name: str, folder: Path, base: Path, tokenizer) -> None:
    """The same for a score model, whose head is trained beside its adapters."""
    rows = [
        {"prompt": word, "response_0": "ab", "response_1": "c", "better_response_id": 0, "safer_response_id": 0,
         "is_response_0_safe": True, "is_response_1_safe": True}
        for word in ("fox", "dog", "lazy", "quick")
    ]
    trained = train(folder, "reward-model", base, rows, "pku")
    model = load(AutoModelForSequenceClassification, base, num_labels=1)
    adapted = PeftModel.from_pretrained(model, trained / "adapter").eval()
    pairs = [{"prompt": word, "response": answer} for word in ("fox", "the") for answer in ("ab", "c")]
    expected = torch.stack([adapted(torch.tensor([tokens(tokenizer, pair)])).logits[0, 0] for pair in pairs])
    rewards = [row["reward"] for row in bench.saddle("score", "--model", trained / "model", lines=pairs)]
    bench.near(f"{name}, saddle's score model in PEFT", torch.tensor(rewards), expected, LIMIT)


def load(kind, base: Path, **more):
    return kind.from_pretrained(base, dtype=torch.float32, **more).eval()


def train(folder: Path, stage: str, base: Path, rows: list, form: str) -> Path:
    """Trains with adapters of rank 2 on `rows`, and gives the run directory."""
    data = folder / f"{stage}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    recipe = folder / f"{stage}.toml"
    recipe.write_text(
        f'run.threads = 1\nmodel.from = "{base}"\nlora = {{ rank = 2 }}\n'
        f'data.train = [{{ path = "{data}", format = "{form}" }}]\n'
        f'data.held_out = [{{ path = "{data}", format = "{form}" }}]\n'
        "optimizer = { batch_rows = 4, learning_rate = 2e-2, epochs = 2 }\n"
    )
    run([PROFILE / "saddle", stage, "--config", recipe, "--run", folder / stage, "--json"], "")
    return folder / stage


def far_apart(bench: Bench, what: str, one: torch.Tensor, other: torch.Tensor) -> None:
    difference = (one - other).abs().max().item()
    bench.note(what, difference > 100 * LIMIT, f"largest difference {difference:.2e}")
