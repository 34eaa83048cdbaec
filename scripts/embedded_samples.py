"""Score the embedded model and draw its samples: the measured part of its model card.

Reads an exported model, the corpus of `embedded_corpus.py` and the log of `train_embedded.py`; prints Markdown. The
samples are one per seed, 0 to 19, in order, each from the next prompt of a fixed list: nothing is picked.

It does not know the network of eFedLLM. Runs alone; torch's threads do the arithmetic.
"""

import argparse
import json
from pathlib import Path

import torch
from train_embedded import CONTEXT, encode, evaluate, read_texts
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

NUM_SAMPLES = 20
MAX_NEW_TOKENS = 96
PROMPTS = (
    "",
    "This package contains",
    "A library for",
    "It provides a simple interface to",
    "python3-",
)
PLOT_WIDTH = 50  # characters of the longest bar


def draw_samples(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> list[tuple[int, str, str]]:
    """Return (seed, prompt, continuation) for the seeds in order, with the model's own generation settings."""
    samples = []
    for seed in range(NUM_SAMPLES):
        prompt = PROMPTS[seed % len(PROMPTS)]
        torch.manual_seed(seed)
        inputs = tokenizer(prompt, return_tensors="pt")
        generated = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS)
        text = tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        samples.append((seed, prompt, text))
    return samples


def format_samples(samples: list[tuple[int, str, str]]) -> str:
    """Return the samples as Markdown, the prompt in bold."""
    parts = []
    for seed, prompt, text in samples:
        quoted = f"{prompt}⟫{text}".strip().replace("\n", "\n> ")
        parts.append(f"Seed {seed}:\n\n> {quoted}\n")
    return "\n".join(parts)


def format_curve(log: Path) -> str:
    """Return the loss curve as a Markdown table and a bar per row."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    table = [
        "| tokens (M) | passes | train nats/token | held-out nats/token | held-out bits/byte |",
        "|--:|--:|--:|--:|--:|",
    ]
    bars = []
    for row in rows[1:]:
        millions, bits = row["tokens"] / 1e6, row["heldout_bits_per_byte"]
        table.append(
            f"| {millions:.2f} | {row['epoch']:.2f} | {row['train_nats_per_token']:.3f} "
            f"| {row['heldout_nats_per_token']:.3f} | {bits:.3f} |"
        )
        bars.append(f"{millions:6.2f} M  {bits:.3f}  {'#' * round(PLOT_WIDTH * (bits - 1) / 1.5)}")
    return "\n".join([*table, "", "Held-out bits per byte (a bar starts at 1.0):", "", "```", *bars, "```"])


def main() -> None:
    """Print the scores, the curve and the samples."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", type=Path, default=Path("node/embedded"), help="the exported model")
    parser.add_argument("--corpus", type=Path, default=Path("build/embedded"), help="where the corpus was written")
    parser.add_argument("--log", type=Path, default=Path("build/embedded/run/log.jsonl"), help="the training's log")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    # The stored bf16 weights, computed in float32: what a node on a CPU does.
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    texts = read_texts(arguments.corpus / "heldout.jsonl")
    documents = encode(tokenizer, texts)
    print("## Held-out loss\n")
    for length in (256, 512, CONTEXT):
        score = evaluate(model, texts, documents, tokenizer.eos_token_id, length)
        print(
            f"- context {length}: {score.bits_per_byte:.4f} bits/byte, {score.nats / score.tokens:.4f} nats/token, "
            f"perplexity {score.perplexity:.2f} per token ({score.tokens} tokens, {score.utf8_bytes} bytes)"
        )
    print(f"\n## Loss curve\n\n{format_curve(arguments.log)}\n")
    print(f"## Samples\n\n{format_samples(draw_samples(model.eval(), tokenizer))}")


if __name__ == "__main__":
    main()
