"""The embedded model under a check, with the calibration that is shipped: texts that it was not calibrated with."""

from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoTokenizer

from node.check.calibrate import load_ends
from node.check.calibration_file import shipped_calibration
from node.check.cheats import LAZY, spoil
from node.check.check import CheckResult, judge
from node.check.honest import CPU, servers_of, together
from node.check.reference import reference_span
from node.check.survey import Survey, walk
from node.model.checkpoint import EMBEDDED, Checkpoint
from node.model.end_parameters import find_end_parameters
from node.model.tensors import codec_of

PROSE = Path(__file__).parents[3] / "LICENSE"
"""English that never changes, and is unlike what the model was trained on and calibrated with."""


class Embedded:
    """The model, some texts on their way through it, and what the calibration says of servers' chunks."""

    def __init__(self, num_texts: int, positions: int, first: int = 0) -> None:
        self.checkpoint = Checkpoint.open(EMBEDDED)
        self.calibration = shipped_calibration(self.checkpoint.manifest32)
        assert self.calibration is not None
        tokenizer = AutoTokenizer.from_pretrained(self.checkpoint.tokenizer_dir, local_files_only=True)
        ids = tokenizer(PROSE.read_text("utf-8"), return_tensors="pt", verbose=False).input_ids[0]
        self.ids = ids[first : first + num_texts * positions].reshape(num_texts, positions)
        self._reference = reference_span(self.checkpoint, "float32", 0, self.checkpoint.num_blocks, CPU)
        ends = load_ends(self.checkpoint, find_end_parameters(self.checkpoint.config), torch.float32)
        self.entering = walk(self._reference, ends.embed(self.ids, 0))
        self._references = {}

    def reference(self, held_in, blocks):
        """Return the reference; the stored weights are bfloat16, which float32 and bfloat16 hold alike."""
        if held_in in ("float32", "bfloat16"):
            return self._reference
        whole = (0, self.checkpoint.num_blocks)
        if (held_in, whole) not in self._references and (held_in, blocks) not in self._references:
            self._references[held_in, blocks] = reference_span(self.checkpoint, held_in, *blocks, CPU)
        return self._references.get((held_in, whole)) or self._references[held_in, blocks]

    def load_whole(self, held_in):
        """Load the reference of all blocks at once, where many spans are asked for."""
        whole = (0, self.checkpoint.num_blocks)
        self._references[held_in, whole] = reference_span(self.checkpoint, held_in, *whole, CPU)

    def scene(self, held_in, codec, blocks):
        return Survey(self.reference(held_in, blocks), self.entering).scene(
            blocks, codec, self.calibration.scales(*blocks)
        )

    def judge(self, held_in, codec, blocks, errors) -> list[CheckResult]:
        standard = self.calibration.standard(held_in, codec, *blocks)
        return [judge([row], standard) for row in errors.tolist()]


class Cheating:
    """Verdicts on chunks of a server that declares bfloat16 and cheats throughout."""

    BLOCKS = (4, 6)
    HELD_IN = "bfloat16"

    def __init__(self, embedded: Embedded) -> None:
        self._embedded = embedded
        self._server = servers_of(self.HELD_IN, [CPU])[0]
        self._codec = codec_of(self._server.dtype)
        self._scene = embedded.scene(self.HELD_IN, self._codec, self.BLOCKS)
        self._generator = torch.Generator().manual_seed(7)
        self._given = self._scene.given.to(self._server.dtype)

    @cached_property
    def span(self):
        return self._server.build(self._embedded.checkpoint, *self.BLOCKS)

    @cached_property
    def honest(self):
        return together(self.span, self._given)

    def spoiled(self, how):
        tensors = self._embedded.checkpoint.load_span(*self.BLOCKS, dtype=self._server.dtype)
        spoilt = spoil(tensors, how, self._generator)
        return self._server.build_with(self._embedded.checkpoint.config, spoilt, *self.BLOCKS)

    def judged(self, outputs) -> list[CheckResult]:
        return self._embedded.judge(self.HELD_IN, self._codec, self.BLOCKS, self._scene.errors(outputs))

    def lazy(self, name) -> list[CheckResult]:
        return self.judged(LAZY[name](self.span, self._given, self._generator))

    def corrupted(self, num_positions) -> list[CheckResult]:
        """Verdicts on chunks of which the last positions are left as they came in."""
        outputs = self.honest.clone()
        for first in range(0, outputs.shape[1], 64):
            outputs[:, first + 64 - num_positions : first + 64] = self._given[
                :, first + 64 - num_positions : first + 64
            ]
        return self.judged(outputs)
