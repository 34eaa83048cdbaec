"""Print the names and one-line synopses of the packages that the embedded model has not been trained on.

Of apt's own lists of this machine, as `embedded_corpus.py` splits them: one source package in fifty, by hash of its
name. Nothing is fetched. `efedllm calibrate embedded --text FILE` takes the output. Runs alone, in one thread.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from embedded_corpus import APT_HELPER, is_heldout

LISTS = Path("/var/lib/apt/lists")


def stanzas() -> Iterator[dict[str, str]]:
    """Yield the fields of every package in the lists."""
    for path in sorted(LISTS.glob("*_Packages*")):
        done = subprocess.run([APT_HELPER, "cat-file", str(path)], capture_output=True, text=True, check=True)
        for stanza in done.stdout.split("\n\n"):
            lines = [line for line in stanza.split("\n") if line and not line.startswith(" ")]
            yield dict(line.split(": ", 1) for line in lines if ": " in line)


def main() -> int:
    """Print one line a package; return 1 where apt has no lists."""
    seen: set[str] = set()
    for fields in stanzas():
        source = fields.get("Source", fields.get("Package", "")).partition(" ")[0]
        synopsis = fields.get("Description", "")
        if synopsis.isascii() and synopsis not in seen and is_heldout(source):
            seen.add(synopsis)
            sys.stdout.write(f"{fields['Package']}: {synopsis}\n")
    return 0 if seen else 1


if __name__ == "__main__":
    sys.exit(main())
