"""What the benches on the embedded world share: training a policy from a demo run's recipe, and gold scores of its answers."""
import json
import subprocess
import tomllib

from environment import ENVIRONMENT

RESPONSES = 1024
MEASURED = ("gold_helpfulness", "gold_harm", "unsafe")


def saddle(program, *words):
    """Runs the program, and returns what it printed."""
    command = [program, *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT).stdout


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def train_command(program, demo, place, keys):
    """The command that trains a policy with the models and the recipe of the demo run `demo`, changed by `keys`, into the run
    `place`."""
    overrides = [word for key in keys for word in ("--set", key)]
    words = ["train", "--config", demo / "train" / "config.toml", "--run", place, "--overwrite", "--json", *overrides]
    return [program, *map(str, words)]


def train(program, demo, place, keys):
    """Runs it."""
    saddle(*train_command(program, demo, place, keys))


def judge(program, demo, place, seed):
    """Gold scores of sampled answers of the policy in `place` to the held-out prompts of `demo`, a row for each answer."""
    prompts, answers, judged = (place / f"{name}.jsonl" for name in ("prompts", "answers", "judged"))
    held_out = (demo / "world" / "prompts.valid.jsonl").read_text().splitlines()
    prompts.write_text("".join(held_out[i % len(held_out)] + "\n" for i in range(RESPONSES)))
    generation = tomllib.loads((place / "config.toml").read_text())["generation"]
    saddle(program, "generate", "--model", place / "model", "--input", prompts, "--output", answers, "--seed", seed + 1,
           "--max-new-tokens", generation["max_new_tokens"], "--temperature", generation["temperature"], "--rows", 128)
    saddle(program, "judge", "--world", demo / "world", "--input", answers, "--output", judged)
    return rows(judged)
