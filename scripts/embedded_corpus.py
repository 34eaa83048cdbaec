"""Build the training text of the embedded model from Debian's English package descriptions.

Fetches apt's lists into a private directory (any Debian machine; the machine's own mirrors are used), reflows the
descriptions into paragraphs, keeps those that read as English, removes exact and near duplicates, and splits off a
held-out part by source package. Writes `train.jsonl`, `heldout.jsonl` and `stats.json`.

It does not know tokenizers, models or the network of eFedLLM. Runs alone, in one thread.
"""

import argparse
import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

APT_HELPER = "/usr/lib/apt/apt-helper"
NGRAM_WORDS = 5  # words per n-gram of the near-duplicate test
DUPLICATE_SHARE = 0.5  # a paragraph is a near duplicate when this share of its n-grams was seen before
HELDOUT_ONE_IN = 50  # one source package in so many goes to the held-out part
MIN_PARAGRAPH_WORDS = 5  # shorter paragraphs are headings and remnants
MIN_LETTER_SHARE = 0.75  # letters and spaces among the characters of an English paragraph
MIN_ITEM_WORDS = 3.0  # mean words per item below which a list is a list of names, not of phrases

BULLET = re.compile(r"^(?:[*+o•·-]|--|\d{1,2}[.)])\s+")
WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "by",
        "can",
        "for",
        "from",
        "has",
        "in",
        "into",
        "is",
        "it",
        "of",
        "on",
        "or",
        "that",
        "the",
        "this",
        "to",
        "was",
        "which",
        "will",
        "with",
        "you",
        "your",
    ]
)


@dataclass(frozen=True)
class Description:
    """One package's description as Debian distributes it."""

    package: str
    source: str  # the source package that it is built from: the unit of the split
    short: str  # the one-line synopsis
    long_lines: tuple[str, ...]  # the extended description, each line still with its leading space


@dataclass(frozen=True)
class Document:
    """One package's description as the model reads it."""

    package: str
    source: str
    text: str  # "name: synopsis", then paragraphs, with an empty line between


@dataclass
class Deduplicator:
    """Remembers the paragraphs that passed; a paragraph passes once.

    Digits count as one symbol, so that texts that differ by a version are duplicates.
    """

    exact: set[str] = field(default_factory=set)
    ngrams: set[int] = field(default_factory=set)
    num_exact: int = 0  # paragraphs refused as exact duplicates
    num_near: int = 0  # paragraphs refused as near duplicates

    def admit(self, paragraph: str) -> bool:
        """Remember the paragraph and return True, or return False when it repeats what was remembered."""
        words = WORD.findall(re.sub(r"\d+", "0", paragraph.lower()))
        key = " ".join(words)
        if key in self.exact:
            self.num_exact += 1
            return False
        grams = {ngram_id(words[i : i + NGRAM_WORDS]) for i in range(len(words) - NGRAM_WORDS + 1)}
        if grams and len(grams & self.ngrams) >= DUPLICATE_SHARE * len(grams):
            self.num_near += 1
            return False
        self.exact.add(key)
        self.ngrams |= grams
        return True


def ngram_id(words: list[str]) -> int:
    """Return 64 bits that stand for the words, the same in every process."""
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(), "big")


def fetch_lists(lists: Path) -> None:
    """Let apt fetch the machine's configured lists, English descriptions included, into `lists` alone."""
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    options = [
        "Acquire::Languages=en",
        f"Dir::State::Lists={lists}",
        "Dir::Cache::pkgcache=",
        "Dir::Cache::srcpkgcache=",
    ]
    subprocess.run(["apt-get", "update", *(part for option in options for part in ("-o", option))], check=True)


def read_stanzas(path: Path) -> Iterator[dict[str, list[str]]]:
    """Yield the stanzas of an apt list: field name to its lines, the first without the name."""
    raw = subprocess.run([APT_HELPER, "cat-file", str(path)], check=True, capture_output=True).stdout
    for block in raw.decode("utf-8", "replace").split("\n\n"):
        stanza: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in block.splitlines():
            if line[:1] == " ":
                lines.append(line)
                continue
            name, _, value = line.partition(":")
            lines = stanza.setdefault(name, [])
            lines.append(value.strip())
        if stanza:
            yield stanza


def read_descriptions(lists: Path) -> list[Description]:
    """Return one description per package of the lists, sorted by name."""
    source_of: dict[str, str] = {}
    for path in sorted(lists.glob("*_Packages*")):
        for stanza in read_stanzas(path):
            package = stanza["Package"][0]
            source_of[package] = stanza.get("Source", [package])[0].split(" ")[0]
    found: dict[str, Description] = {}
    for path in sorted(lists.glob("*_Translation-en*")):
        for stanza in read_stanzas(path):
            package, (short, *rest) = stanza["Package"][0], stanza["Description-en"]
            found.setdefault(package, Description(package, source_of.get(package, package), short, tuple(rest)))
    return [found[package] for package in sorted(found)]


def reflow(lines: tuple[str, ...]) -> list[str]:
    """Join wrapped lines into paragraphs; a list becomes one paragraph with a line per item."""
    paragraphs: list[str] = []
    block: list[str] = []  # the paragraph so far: running text first, then items that start with "- "

    def finish() -> None:
        if block:
            paragraphs.append("\n".join(block))
            block.clear()

    for line in lines:
        text = " ".join(line.split())
        if text in {".", ""}:
            finish()
        elif BULLET.match(text):
            if block and not block[-1].startswith("- "):
                finish()
            block.append("- " + BULLET.sub("", text))
        elif block:
            block[-1] += " " + text
        else:
            block.append(text)
    finish()
    return paragraphs


def is_english(paragraph: str) -> bool:
    """Tell whether a paragraph reads as English prose or phrases, not as names, tables, links or code."""
    lowered = paragraph.lower()
    words = WORD.findall(lowered)
    if len(words) < MIN_PARAGRAPH_WORDS or not paragraph.isascii() or "://" in paragraph:
        return False
    letters = sum(char.isalpha() or char == " " for char in paragraph)
    if letters < MIN_LETTER_SHARE * len(paragraph):
        return False
    items = paragraph.split("\n")
    if items[0].startswith("- "):
        return len(words) >= MIN_ITEM_WORDS * len(items) and bool(FUNCTION_WORDS.intersection(words))
    return sum(word in FUNCTION_WORDS for word in words) >= 0.12 * len(words)


def is_heldout(source: str) -> bool:
    """Tell whether a source package, with every package built from it, belongs to the held-out part."""
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big") % HELDOUT_ONE_IN == 0


def build_documents(descriptions: list[Description], seen: Deduplicator) -> list[Document]:
    """Return the documents that still have a paragraph after filtering and deduplication."""
    documents = []
    for description in descriptions:
        paragraphs = [p for p in reflow(description.long_lines) if is_english(p) and seen.admit(p)]
        if paragraphs and description.short.isascii():
            title = f"{description.package}: {description.short}"
            documents.append(Document(description.package, description.source, "\n\n".join([title, *paragraphs])))
    return documents


def write_documents(path: Path, documents: list[Document]) -> dict[str, int]:
    """Write the documents as JSON lines and return their sizes."""
    with path.open("w", encoding="utf-8") as out:
        for document in documents:
            out.write(
                json.dumps({"package": document.package, "source": document.source, "text": document.text}) + "\n"
            )
    return {
        "documents": len(documents),
        "sources": len({document.source for document in documents}),
        "bytes": sum(len(document.text.encode()) for document in documents),
    }


def main() -> None:
    """Fetch where needed, build both parts and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path("build/embedded"), help="where the corpus is written")
    parser.add_argument("--lists", type=Path, help="directory of apt lists; fetched when empty (default: OUT/lists)")
    arguments = parser.parse_args()
    lists = (arguments.lists or arguments.out / "lists").resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not any(lists.glob("*_Translation-en*")):
        fetch_lists(lists)

    descriptions = read_descriptions(lists)
    if not descriptions:
        raise SystemExit(f"No English descriptions in {lists}: are package sources configured for apt?")
    seen = Deduplicator()
    train = build_documents([d for d in descriptions if not is_heldout(d.source)], seen)
    refused_train = (seen.num_exact, seen.num_near)
    heldout = build_documents([d for d in descriptions if is_heldout(d.source)], seen)
    stats = {
        "raw": {
            "packages": len(descriptions),
            "sources": len({d.source for d in descriptions}),
            "bytes": sum(len((d.short + "".join(d.long_lines)).encode()) for d in descriptions),
        },
        "train": write_documents(arguments.out / "train.jsonl", train),
        "heldout": write_documents(arguments.out / "heldout.jsonl", heldout),
        "refused_paragraphs": {
            "train": {"exact": refused_train[0], "near": refused_train[1]},
            "heldout": {"exact": seen.num_exact - refused_train[0], "near": seen.num_near - refused_train[1]},
        },
    }
    (arguments.out / "stats.json").write_text(json.dumps(stats, indent=1) + "\n")
    print(json.dumps(stats))


if __name__ == "__main__":
    main()
