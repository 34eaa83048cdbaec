"""A tiny model, a calibration of it from few chunks, and openings as an honest server of it gives them, or another.

The calibration is made by the function behind ``efedllm calibrate`` from so little text that its percentiles are rough.
"""

from dataclasses import replace

import torch

from dht.identity import Identity
from dht.records import seal
from node.check.calibrate import Texts, calibrate, load_ends, load_subject
from node.check.honest import together
from node.check.reference import reference_span
from node.client.audit_opening import Given, Opening
from node.client.route import Stage
from node.client.thin_terms import ThinTerms
from node.model.checkpoint import Checkpoint
from node.model.end_parameters import find_end_parameters
from node.model.sampling import top_logits
from node.model.tensors import to_payload
from node.model.tokens import ids_to_payload, logits_to_payload
from tests.dht.samples import receipt
from tests.families import build

TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
PROVIDER, CONSUMER, AUDITOR = (Identity.ephemeral() for _ in range(3))
CPU = torch.device("cpu")


def calibration_of(checkpoint, *, vocabulary=128, num_texts=2, positions=64, kinds=("float32",)):
    ids = torch.randint(3, vocabulary, (num_texts, positions), generator=torch.Generator().manual_seed(0))
    texts = Texts(ids, "drawn at random")
    return calibrate(load_subject(checkpoint, texts), texts, seed=0, full=False, kinds=kinds, progress=lambda *_: None)


class Tiny:
    def __init__(self, directory):
        build("llama", TINY).save_pretrained(directory)
        self.checkpoint = Checkpoint.open(str(directory))
        self.calibration = calibration_of(self.checkpoint)
        self.span = reference_span(self.checkpoint, "float32", 0, 2, CPU)
        self.ends = load_ends(self.checkpoint, find_end_parameters(self.checkpoint.config), torch.float32)

    def opening(self, outputs_of=together, *, index=0, provider=PROVIDER, seed=1, **changes):
        """A chunk of 64 positions through both blocks; ``outputs_of(span, inputs)`` is what the server gives."""
        inputs = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(seed)) / 8
        made = receipt(provider, CONSUMER, manifest=self.checkpoint.manifest32, end=2, work=128)
        opening = Opening(
            manifest=self.checkpoint.manifest32,
            stage=Stage(provider.peer_id, 0, 2, (), weights="float32"),
            previous="",
            dtype="float32",
            profile=made.profile,
            codec="float32",
            session=bytes(16),
            segment=0,
            index=index,
            first=0,
            end=64,
            left_padding=(),
            thin=None,
            inputs=given(inputs),
            outputs=(given(outputs_of(self.span, inputs)),),
            leaves=(),
            receipt=seal(made, provider, CONSUMER).envelope,
            offer=b"",
            offer_signature=b"",
            accept_signature=b"",
            headers={},
        )
        return replace(opening, **changes)

    def ends_opening(self, sampling, logits_of=lambda logits: logits):
        """A chunk of a client without weights: ids in, 64 logits of a position out, or the likeliest token."""
        ids = torch.randint(0, 128, (1, 64), generator=torch.Generator().manual_seed(1))
        logits = logits_of(self.ends.logits(together(self.span, self.ends.embed(ids, 0))))
        if sampling is None:
            outputs = Given(0, "logits", (1, 64, 64), bytes(logits_to_payload(*top_logits(logits, 64))))
        else:
            outputs = ids_given(logits.argmax(dim=-1))
        thin = ThinTerms(64 if sampling is None else 0, sampling)
        return self.opening(inputs=ids_given(ids), outputs=(outputs,), thin=thin)


def given(hidden):
    return Given(0, "float32", tuple(hidden.shape), bytes(to_payload(hidden, "float32")))


def ids_given(ids):
    return Given(0, "ids", (*ids.shape, 1), bytes(ids_to_payload(ids)))


def skips_a_layer(span, inputs):
    return together(span.view(0, 1), inputs)


def adds_noise(share):
    def outputs(span, inputs):
        right = together(span, inputs)
        noise = torch.randn(right.shape, generator=torch.Generator().manual_seed(3))
        return right + share * (right - inputs).std() * noise

    return outputs
