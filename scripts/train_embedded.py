r"""Train the embedded model: tokenizer, training, held-out loss, export in the layout that `node/embedded/` ships.

Reads the corpus that `embedded_corpus.py` writes. The schedule is a function of progress, the share of the budget that
is spent: tokens with `--tokens` (the same seed then gives the same run), seconds with `--hours` (ends on time however
busy the machine is). Run again with the same `--out`, it continues from the last checkpoint; `--export-only` writes the
model as it stands.

With glibc, `GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:\
glibc.malloc.trim_threshold=17179869184` keeps the buffers of a step for the next one: 4,900 tokens/s instead of 3,400.

It does not know the network of eFedLLM. Runs alone; torch's threads do the arithmetic.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB_SIZE = 4096
END, PAD = "<|endoftext|>", "<|pad|>"
CONTEXT = 1024  # tokens; the longest sequence trained, scored and allowed
LENGTHS = ((0.0, 256), (0.7, 512), (0.9, CONTEXT))  # (from this progress, sequence length): short ones cost less
BATCH_TOKENS = 4096  # tokens per optimizer step
WARMUP, DECAY_FROM = 0.02, 0.4  # progress at which the rate is full, and from which it falls linearly to zero
MUON_RATE, ADAMW_RATE = 3e-3, 3e-3  # peak learning rates; Muon's is scaled to AdamW's update size
WEIGHT_DECAY = 0.1  # on matrices
CLIP_NORM = 1.0  # gradient norm
REPORT_EVERY, SAVE_EVERY = 0.04, 0.04  # progress between held-out evaluations, and between checkpoints
REPORT_TOKENS = 400_000  # training tokens between evaluations at least: on a busy machine training comes first


@dataclass
class Position:
    """How far the training has come; stands in the checkpoint beside the weights."""

    step: int = 0
    tokens: int = 0  # training tokens seen, repeats included
    seconds: float = 0.0  # wall clock spent, evaluations included
    epoch: int = 0
    offset: int = 0  # tokens of this epoch's stream already used


@dataclass(frozen=True)
class Heldout:
    """Loss over held-out documents, each scored alone from its first token to its end token."""

    nats: float  # summed over all predicted tokens
    tokens: int  # predicted tokens, the end of each document included
    utf8_bytes: int  # of the documents' text

    @property
    def bits_per_byte(self) -> float:
        """Return the loss in bits per byte of UTF-8 text."""
        return self.nats / math.log(2) / self.utf8_bytes

    @property
    def perplexity(self) -> float:
        """Return the perplexity per token of this tokenizer."""
        return math.exp(self.nats / self.tokens)


def read_texts(path: Path) -> list[str]:
    """Return the documents of one part of the corpus."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE; it puts the end token before a text, where a document starts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=[END, PAD],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(out: Path, texts: list[str]) -> PreTrainedTokenizerFast:
    """Return the tokenizer of an earlier run of `out`, or train and save it."""
    path = out / "tokenizer"
    if not path.exists():
        build_tokenizer(texts).save_pretrained(path)
    return PreTrainedTokenizerFast.from_pretrained(path)


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[np.ndarray]:
    """Return each text's token ids, the end token first."""
    return [np.asarray(ids, dtype=np.int64) for ids in tokenizer(texts, verbose=False)["input_ids"]]


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained model; the projections that write to the residual stream start smaller."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=576,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        initializer_range=0.02,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.mul_(1 / math.sqrt(2 * config.num_hidden_layers))
    return model


def build_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices (it takes matrices only) and AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    embedding = model.model.embed_tokens.weight
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": [embedding], "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
            lr=ADAMW_RATE,
            betas=(0.9, 0.95),
        ),
    ]


def rate_scale(progress: float) -> float:
    """Return the share of the peak learning rate: warm up, hold, then fall linearly to zero.

    1 |  ______
      | /      \\____
    0 |/            \\____
      +--+-----+---------+
      0  WARMUP DECAY_FROM 1
    """
    return max(0.0, min(progress / WARMUP, 1.0, (1 - progress) / (1 - DECAY_FROM)))


def sequence_length(progress: float) -> int:
    """Return the sequence length in tokens at this progress."""
    return max(length for start, length in LENGTHS if progress >= start)


def epoch_stream(documents: list[np.ndarray], seed: int, epoch: int) -> np.ndarray:
    """Return the documents of one epoch in an order of its own, end to end, and the end token once more."""
    order = np.random.default_rng([seed, epoch]).permutation(len(documents))
    return np.concatenate([*(documents[i] for i in order), documents[0][:1]])


def next_batch(stream: np.ndarray, offset: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets, `[BATCH_TOKENS // length, length]` each, from the stream at `offset`."""
    chunk = torch.from_numpy(stream[offset : offset + BATCH_TOKENS + 1])
    return chunk[:-1].view(-1, length), chunk[1:].view(-1, length)


def split_windows(ids: np.ndarray, length: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield windows of at most `length + 1` tokens and the number of their first targets already scored before.

    A document longer than that advances by half a window, so each scored token but the first ones sees at least
    `length // 2` tokens.
    """
    start, scored = 0, 0  # targets ids[1:scored + 1] are done
    while scored < len(ids) - 1:
        window = ids[start : start + length + 1]
        yield window, scored - start
        scored = start + len(window) - 1
        start += length // 2


@torch.no_grad()
def evaluate(
    model: LlamaForCausalLM, texts: list[str], documents: list[np.ndarray], end_id: int, length: int = CONTEXT
) -> Heldout:
    """Score every token of every document once, the end token that closes it included."""
    windows = [w for ids in documents for w in split_windows(np.append(ids, end_id), length)]
    windows.sort(key=lambda w: len(w[0]))
    nats, tokens = 0.0, 0
    model.eval()
    while windows:
        longest = len(windows[-1][0])
        group = [windows.pop() for _ in range(min(len(windows), max(1, BATCH_TOKENS // longest)))]
        inputs = torch.zeros(len(group), longest - 1, dtype=torch.long)
        targets = torch.full_like(inputs, -100)
        for row, (ids, done) in enumerate(group):
            inputs[row, : len(ids) - 1] = torch.from_numpy(ids[:-1])
            targets[row, done : len(ids) - 1] = torch.from_numpy(ids[1 + done :])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=inputs, use_cache=False).logits
        nats += functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum").item()
        tokens += int((targets != -100).sum())
    model.train()
    return Heldout(nats, tokens, sum(len(text.encode()) for text in texts))


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, target: Path) -> None:
    """Write config, bf16 weights, generation settings and tokenizer: data alone, no code."""
    target.mkdir(parents=True, exist_ok=True)
    shipped = LlamaForCausalLM(LlamaConfig.from_dict(model.config.to_dict()))
    shipped.load_state_dict(model.state_dict())
    shipped = shipped.to(torch.bfloat16)
    shipped.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        repetition_penalty=1.1,  # without it one sample in ten falls into a loop
    )
    shipped.save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(target)
    settings_path = target / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for where_it_was_loaded_from in ("is_local", "local_files_only"):
        settings.pop(where_it_was_loaded_from, None)
    settings_path.write_text(json.dumps(settings, indent=2) + "\n")


def save_checkpoint(
    path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], position: Position
) -> None:
    """Write everything that a continued run needs, replacing the earlier checkpoint in one step."""
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "position": asdict(position),
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def load_checkpoint(path: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]) -> Position:
    """Restore the last checkpoint, if there is one, and return how far it had come."""
    if not path.exists():
        return Position()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return Position(**{f.name: state["position"][f.name] for f in fields(Position)})


def log_line(path: Path, **values: float) -> None:
    """Print one JSON line and append it to the log."""
    line = json.dumps({key: round(value, 5) for key, value in values.items()})
    print(line, flush=True)
    with path.open("a") as log:
        log.write(line + "\n")


def train_step(
    model: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    batch: tuple[torch.Tensor, torch.Tensor],
    scale: float,
) -> float:
    """Take one step at `scale` of the peak rates and return the batch's loss in nats per token."""
    inputs, targets = batch
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=inputs, use_cache=False).logits
    loss = functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    loss.backward()
    parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
    for optimizer, peak in zip(optimizers, (MUON_RATE, ADAMW_RATE), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * scale
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def main() -> None:
    """Train, or continue, until the budget is spent; then score and export."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--corpus", type=Path, default=Path("build/embedded"), help="where the corpus was written")
    parser.add_argument("--out", type=Path, default=Path("build/embedded/run"), help="checkpoints, tokenizer and log")
    parser.add_argument("--export", type=Path, default=Path("build/embedded/model"), help="where the model is written")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--tokens", type=float, help="budget in training tokens, repeats included")
    budget.add_argument("--hours", type=float, default=1.1, help="budget in hours of wall clock")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export-only", action="store_true", help="write the model of the last checkpoint and stop")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    train_texts, heldout_texts = (read_texts(arguments.corpus / f"{part}.jsonl") for part in ("train", "heldout"))
    tokenizer = load_tokenizer(arguments.out, train_texts)
    model = build_model(tokenizer)
    optimizers = build_optimizers(model)
    checkpoint, log = arguments.out / "state.pt", arguments.out / "log.jsonl"
    position = load_checkpoint(checkpoint, model, optimizers)
    if arguments.export_only:
        export(model, tokenizer, arguments.export)
        return

    train, heldout = encode(tokenizer, train_texts), encode(tokenizer, heldout_texts)
    stream = epoch_stream(train, arguments.seed, position.epoch)
    num_parameters = sum(p.numel() for p in model.parameters())
    print(f"{num_parameters} parameters, {len(stream) - 1} tokens per epoch", flush=True)
    started = time.monotonic() - position.seconds
    next_report = next_save = 0.0
    report_tokens = position.tokens + (REPORT_TOKENS if position.step else 0)
    losses: list[float] = []
    while True:
        position.seconds = time.monotonic() - started
        spent = position.tokens if arguments.tokens else position.seconds
        progress = min(1.0, spent / (arguments.tokens or arguments.hours * 3600))
        if progress >= 1 or (progress >= next_report and position.tokens >= report_tokens):
            score = evaluate(model, heldout_texts, heldout, tokenizer.eos_token_id)
            log_line(
                log,
                progress=progress,
                step=position.step,
                tokens=position.tokens,
                seconds=position.seconds,
                epoch=position.epoch + position.offset / len(stream),
                train_nats_per_token=float(np.mean(losses or [math.nan])),
                heldout_nats_per_token=score.nats / score.tokens,
                heldout_bits_per_byte=score.bits_per_byte,
                heldout_perplexity=score.perplexity,
            )
            losses.clear()
            next_report, report_tokens = progress + REPORT_EVERY, position.tokens + REPORT_TOKENS
        if progress >= next_save:
            save_checkpoint(checkpoint, model, optimizers, position)
            next_save = progress + SAVE_EVERY
        if progress >= 1:
            break
        if position.offset + BATCH_TOKENS >= len(stream):  # the rest of an epoch, less than a batch, is left out
            position.epoch, position.offset = position.epoch + 1, 0
            stream = epoch_stream(train, arguments.seed, position.epoch)
        batch = next_batch(stream, position.offset, sequence_length(progress))
        losses.append(train_step(model, optimizers, batch, rate_scale(progress + 1e-3)))
        position.step, position.tokens = position.step + 1, position.tokens + BATCH_TOKENS
        position.offset += BATCH_TOKENS
    save_checkpoint(checkpoint, model, optimizers, position)
    export(model, tokenizer, arguments.export)


if __name__ == "__main__":
    main()
