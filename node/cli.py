"""The ``efedllm`` command: arguments in, one of ``node.run`` called, errors turned into a sentence and an exit code.

Imports of torch and of hivemind take seconds, so a command imports what it runs only when it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from node import __version__
from node.config import ANCHORS_VARIABLE, JOIN_VARIABLE, default_anchors, default_home, default_join
from node.errors import UserError
from node.run import argument_types as given
from node.run.interrupts import INTERRUPTED, leaving_at_once_on_interrupt

if TYPE_CHECKING:
    from dht.parameters import JoinCode
    from node.run.events import Reporter
    from node.run.generate import GenerateOptions, ThinOptions
    from node.run.serve_plan import Wanted

Arguments: TypeAlias = argparse.Namespace
DEFAULT_LISTEN = "/ip4/127.0.0.1/tcp/0"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return the exit code."""
    arguments = _parser().parse_args(argv)
    _set_up_logging(verbose=arguments.verbose)
    run: Callable[[Arguments], int] = arguments.run
    try:
        with leaving_at_once_on_interrupt():
            return run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # Whoever read our output has gone; there is nobody to tell.
        return 0
    except Exception as error:  # noqa: BLE001 - the border of the command line: every failure is a sentence and a code
        return _fail(error, verbose=arguments.verbose)


def _fail(error: Exception, *, verbose: bool) -> int:
    from node.run.exit_codes import DISK_FULL, INTERNAL, exit_code

    code = exit_code(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        sys.stderr.write(f"efedllm: The disk is full ({error.filename or 'no file named'}); free some space.\n")
        return DISK_FULL
    if code == INTERNAL or verbose:
        traceback.print_exc()
    if code == INTERNAL:
        sys.stderr.write("efedllm: this is a bug; please report it with the lines above.\n")
    else:
        sys.stderr.write(f"efedllm: {error}\n")
    return code


def _set_up_logging(*, verbose: bool) -> None:
    """Send our own log to stderr; libraries speak up only when they are asked to."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")
    for name in ("transformers", "hivemind", "huggingface_hub", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.CRITICAL)
    if not verbose:
        warnings.simplefilter("ignore")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line, where argparse prints its whole usage as well."""

    def error(self, message: str) -> NoReturn:
        """End the process with ``message`` and the way to help."""
        self.exit(2, f"efedllm: {message}; see `{self.prog} --help`.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="efedllm",
        description="A peer-to-peer node for large language models: serve some blocks, generate through many.",
    )
    parser.add_argument("--version", action="version", version=f"efedllm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_demo,
        _add_bootstrap,
        _add_serve,
        _add_donor_words,
        _add_generate,
        _add_chat,
        _add_status,
        _add_score,
        _add_claims,
        _add_doctor,
        _add_receipts,
        _add_statement,
        _add_identity,
        _add_calibrate,
        _add_verify,
    ):
        add(commands)
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"  # noqa: SLF001 - argparse has no public name for it


def _command(commands: Commands, name: str, run: Callable[[Arguments], int], summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.add_argument("--verbose", action="store_true", help="show the log and, on errors, where they came from")
    parser.set_defaults(run=run)
    return parser


def _add_events(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--events", choices=["json"], help="write events to stdout, one JSON object a line")


def _add_join(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--join",
        metavar="CODE",
        default=default_join(),
        help=f"join code that `efedllm bootstrap` printed, or multiaddrs of a public swarm (default: {JOIN_VARIABLE})",
    )


def _add_anchors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--anchors",
        type=given.peers,
        metavar="PEER_ID,...",
        default=default_anchors(),
        help=f"whose trust counts for you, instead of the swarm's own anchors (default: {ANCHORS_VARIABLE})",
    )


def _anchors(arguments: Arguments) -> tuple[str, ...]:
    return arguments.anchors or ()


def _add_addresses(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen",
        metavar="MULTIADDR",
        action="append",
        help=f"address to listen on, for example /ip4/0.0.0.0/tcp/31337; may be repeated (default: {DEFAULT_LISTEN})",
    )
    parser.add_argument(
        "--announce",
        metavar="MULTIADDR",
        action="append",
        default=[],
        help="address that others shall dial, where it differs from --listen; may be repeated",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="directory, hub id, or `embedded` for the bundled model")
    parser.add_argument("--revision", help="revision on the hub")


def _reporter(arguments: Arguments) -> Reporter:
    from node.run.events import Reporter

    return Reporter(events_json=arguments.events == "json", out=sys.stdout, err=sys.stderr)


def _join(arguments: Arguments) -> JoinCode:
    from dht.parameters import parse_join

    return parse_join(_join_text(arguments))


def _join_text(arguments: Arguments) -> str:
    if not arguments.join:
        raise UserError(f"No swarm is named; pass --join CODE, or set {JOIN_VARIABLE}.")
    text: str = arguments.join
    return text


# ------------------------------------------------------------------------------------------------------------ demo


def _add_demo(commands: Commands) -> None:
    summary = "a private swarm on this machine, one process per role, and text from the bundled model"
    parser = _command(commands, "demo", _demo, summary)
    parser.add_argument("--prompt", type=given.text, default="This package provides", help="what the text begins with")
    parser.add_argument("--max-new-tokens", type=given.count, default=120, metavar="N")
    parser.add_argument("--seed", type=given.seed, default=0, help="seed of the sampling")
    _add_events(parser)


def _demo(arguments: Arguments) -> int:
    from node.run.demo import DemoOptions, Interrupted, run_demo
    from node.run.lifetime import run_loop

    options = DemoOptions(arguments.prompt, arguments.max_new_tokens, arguments.seed)
    reporter = _reporter(arguments)
    try:
        run_loop(lambda: run_demo(options, reporter))
    except Interrupted:
        reporter.say("\nInterrupted; every process of the swarm has ended.")
        return INTERRUPTED
    return 0


# ------------------------------------------------------------------------------------------------------- bootstrap


def _add_bootstrap(commands: Commands) -> None:
    parser = _command(commands, "bootstrap", _bootstrap, "the first peer of a swarm; prints its join code")
    parser.add_argument("--private", action="store_true", help="admit only peers that have the join code")
    parser.add_argument("--name", default=None, help="name of the swarm (default: private, or public)")
    parser.add_argument("--join", metavar="CODE", default=None, help="be a further bootstrap of this swarm")
    parser.add_argument(
        "--epoch", type=given.epoch, metavar="SECONDS",
        help="length of the periods in which work is counted, for tests and private swarms (default: 21600)",
    )  # fmt: skip
    parser.add_argument(
        "--proof-of-work", type=given.bits, metavar="BITS",
        help="how hard it is to make an identity, doubled by each bit (default: 0 with --private, else 22)",
    )  # fmt: skip
    parser.add_argument(
        "--anchors", type=given.peers, metavar="PEER_ID,...", default=(),
        help="whose trust counts in the swarm that is founded, beside this bootstrap's own",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", type=Path, action="append", default=[], metavar="FILE",
        help="what `efedllm calibrate` wrote of a model: as an anchor, name it to all who judge work on that model, "
        "and hand it out; may be repeated",
    )  # fmt: skip
    _add_addresses(parser)
    _add_events(parser)
    parser.add_argument("--exit-with-stdin", action="store_true", help="end when standard input ends")


def _bootstrap(arguments: Arguments) -> int:
    from dht.parameters import parse_join
    from node.run.bootstrap import BootstrapOptions, run_bootstrap
    from node.run.lifetime import run_loop

    options = BootstrapOptions(
        home=default_home(),
        name=arguments.name or ("private" if arguments.private else "public"),
        private=arguments.private,
        listen=tuple(arguments.listen or ()),
        announce=tuple(arguments.announce),
        join=parse_join(arguments.join) if arguments.join else None,
        epoch_s=arguments.epoch,
        proof_of_work_bits=arguments.proof_of_work,
        anchors=arguments.anchors,
        exit_with_stdin=arguments.exit_with_stdin,
        calibrations=tuple(arguments.calibration),
    )
    reporter = _reporter(arguments)
    run_loop(lambda: run_bootstrap(options, reporter))
    return 0


# ----------------------------------------------------------------------------------------------------------- serve


def _add_serve(commands: Commands) -> None:
    parser = _command(commands, "serve", _serve, "serve some blocks of a model to a swarm")
    _add_model(parser)
    _add_join(parser)
    _add_wanted(parser)
    _add_anchors(parser)
    _add_calibration(parser)
    parser.add_argument(
        "--no-receipts",
        action="store_true",
        help="serve without counting: clients sign for nothing, and you earn nothing",
    )
    parser.add_argument(
        "--max-sessions", type=given.count, default=256, metavar="N", help="sessions at once (default: 256)"
    )
    parser.add_argument(
        "--max-bandwidth",
        type=given.bandwidth,
        metavar="SIZE",
        help="bound for what is moved in a second, in and out together",
    )
    parser.add_argument(
        "--hours", metavar="HH:MM-HH:MM", help="take sessions at these hours only, for example 22:00-07:00,12:00-13:00"
    )
    parser.add_argument(
        "--balance-every", type=given.seconds, default=60, metavar="S",
        help="how often to look whether other blocks need this server more, and to move there (default: 60; 0: never; "
        "with --blocks it stays)",
    )  # fmt: skip
    parser.add_argument(
        "--drain-timeout", type=given.count, default=30, metavar="S",
        help="seconds that sessions have to go elsewhere when the server leaves (default: 30)",
    )  # fmt: skip
    parser.add_argument(
        "--share-prefixes",
        action="store_true",
        help="let sessions of different clients share what is computed of equal beginnings; the time an answer takes "
        "then tells one client what others have asked",
    )
    _add_addresses(parser)
    _add_events(parser)
    parser.add_argument("--exit-with-stdin", action="store_true", help="end when standard input ends")


def _add_wanted(parser: argparse._ActionsContainer) -> None:
    """Add what decides which blocks fit and how they are held: asked of ``serve``, and of ``doctor`` about it."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--blocks", metavar="START:END", help="which blocks (default: as many as fit, where needed)")
    which.add_argument(
        "--num-blocks", type=given.count, metavar="N", help="how many blocks, where the swarm needs them"
    )
    parser.add_argument("--device", default="auto", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "float16", "bfloat16"],
        help="dtype to compute in (default: the model's own on a GPU, float32 on a CPU)",
    )  # fmt: skip
    parser.add_argument(
        "--quantize", choices=["int8", "int4"],
        help="hold weights in 8 or 4 bits; int4 computes in bfloat16 (needs the extra `quantized`)",
    )  # fmt: skip
    parser.add_argument(
        "--max-memory", type=given.size, metavar="SIZE", help="bound for weights and caches, such as 6GiB"
    )
    parser.add_argument(
        "--no-ends",
        action="store_true",
        help="hold neither embeddings nor head: clients without weights (--thin) then need another server for them",
    )
    parser.add_argument(
        "--num-threads", type=given.threads, metavar="N", help="threads to compute with (default: torch's)"
    )


def _wanted(arguments: Arguments) -> Wanted:
    from node.run.serve_plan import Wanted

    return Wanted(
        blocks=arguments.blocks,
        num_blocks=arguments.num_blocks,
        device=arguments.device,
        dtype=arguments.dtype,
        quantize=arguments.quantize,
        max_memory_bytes=arguments.max_memory,
        offer_ends=not arguments.no_ends,
    )


def _serve(arguments: Arguments) -> int:
    join = _join(arguments)
    from node.serve.hours import Hours

    hours = Hours.parse(arguments.hours) if arguments.hours is not None else None  # What is wrong is said at once.
    from node.run.lifetime import run_loop
    from node.run.loading import ServeOptions
    from node.run.server import run_server

    options = ServeOptions(
        model=arguments.model,
        revision=arguments.revision,
        home=default_home(),
        join=join,
        wanted=_wanted(arguments),
        max_sessions=arguments.max_sessions,
        max_bytes_per_s=arguments.max_bandwidth,
        hours=hours,
        balance_every_s=arguments.balance_every,
        drain_timeout_s=arguments.drain_timeout,
        share_prefixes=arguments.share_prefixes,
        keeps_receipts=not arguments.no_receipts,
        num_threads=arguments.num_threads,
        listen=tuple(arguments.listen or (DEFAULT_LISTEN,)),
        announce=tuple(arguments.announce),
        exit_with_stdin=arguments.exit_with_stdin,
        anchors=_anchors(arguments),
        calibration=arguments.calibration,
    )
    reporter = _reporter(arguments)
    run_loop(lambda: run_server(options, reporter))
    return 0


_DONOR_WORDS = {
    "drain": "let the running server finish or hand over its sessions, and leave the swarm",
    "pause": "let the running server take no new sessions and hand over those that it has",
    "resume": "let the paused server take sessions again",
}


def _add_donor_words(commands: Commands) -> None:
    for word, summary in _DONOR_WORDS.items():
        parser = _command(commands, word, _say_word, summary)
        parser.set_defaults(word=word)
        if word == "drain":
            parser.add_argument("--no-wait", action="store_true", help="do not wait until it has left")


def _say_word(arguments: Arguments) -> int:
    from node.run.control_socket import ask
    from node.run.lifetime import run_loop

    waits = arguments.word == "drain" and not arguments.no_wait
    answer = run_loop(lambda: ask(default_home(), arguments.word, until_gone=waits))
    if "error" in answer:
        raise UserError(answer["error"])
    why = f" ({answer['why']})" if answer["why"] else ""
    sys.stdout.write(f"{answer['state']}{why}; sessions: {answer['sessions']}\n")
    if waits:
        sys.stdout.write("The server has left.\n")
    return 0


# -------------------------------------------------------------------------------------------------- generate, chat


def _add_generation(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_join(parser)
    parser.add_argument("--max-new-tokens", type=given.count, default=128, metavar="N")
    parser.add_argument("--greedy", action="store_true", help="take the likeliest token instead of sampling")
    parser.add_argument("--temperature", type=given.temperature, help="above 1 more varied, below 1 more likely text")
    parser.add_argument("--top-p", type=given.share, help="sample from the likeliest tokens of this total probability")
    parser.add_argument("--seed", type=given.seed, help="seed of the sampling, to get the same text again")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument(
        "--codec", default="auto", choices=["auto", "float32", "float16", "bfloat16", "int8"],
        help="how hidden states travel: int8 takes a byte per element, and changes results a little (default: --dtype)",
    )  # fmt: skip
    parser.add_argument(
        "--policy", default="fastest", choices=["fastest", "widest"],
        help="route with the shortest time for one token, or the one that lets the most tokens per second pass, for "
        "many sessions at once (default: fastest)",
    )  # fmt: skip
    parser.add_argument(
        "--only", metavar="PEER_ID", action="append", help="use this server and no others; may be repeated"
    )
    _add_anchors(parser)
    parser.add_argument(
        "--audit-rate", type=given.portion, metavar="SHARE",
        help="share of what servers sign for that they must open again to this client, by its own draw; 0: nothing "
        "(default: as the swarm has it, 0.02, and 0.2 of servers that are young in their trust, if this client judges)",
    )  # fmt: skip
    parser.add_argument(
        "--shadow-rate", type=given.portion, metavar="SHARE",
        help="share of what you consume that newcomers run a second time, to be compared and thrown away: so they can "
        "earn trust; up to 0.05, 0: nothing (default: 0.05)",
    )  # fmt: skip
    _add_calibration(parser)
    parser.add_argument(
        "--ask-anchors", action="store_true",
        help="have anchors judge what audits open where this machine cannot: without weights, or without a "
        "calibration; they see the text of what they judge",
    )  # fmt: skip
    thin = parser.add_argument_group(
        "without weights",
        "The first server then reads the token ids of your prompt, and the last one every token that is generated.",
    )
    thin.add_argument("--thin", action="store_true", help="hold and download no weights: servers embed and score")
    thin.add_argument(
        "--server-sampling", action="store_true", help="with --thin: the last server chooses the tokens, too"
    )
    thin.add_argument(
        "--num-logits", type=given.count, metavar="N",
        help="with --thin: likeliest tokens that the last server sends to choose from, up to 1024 (default: 64)",
    )  # fmt: skip
    thin.add_argument(
        "--manifest", metavar="HEX",
        help="with --thin: the model's identity from `status --json`, where MODEL has config and tokenizer only",
    )  # fmt: skip
    _add_events(parser)


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="what `efedllm calibrate` wrote of MODEL, to judge work by (default: the bundled model's; of others what "
        "the anchors name)",
    )


def _generation_options(arguments: Arguments, prompt: str) -> GenerateOptions:
    sampling = arguments.temperature is not None or arguments.top_p is not None
    if arguments.thin and arguments.calibration:
        raise UserError("A client without weights judges nothing itself; leave out --thin, or --calibration.")
    if arguments.greedy and sampling:
        raise UserError("--greedy samples nothing; leave it out, or leave out --temperature and --top-p.")
    join = _join_text(arguments)
    _join(arguments)  # A damaged code is said before anything heavy is imported.
    import torch

    from node.model.devices import pick_dtype
    from node.run.generate import GenerateOptions

    return GenerateOptions(
        model=arguments.model,
        revision=arguments.revision,
        join=join,
        prompt=prompt,
        max_new_tokens=arguments.max_new_tokens,
        do_sample=False if arguments.greedy else (True if sampling else None),
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
        dtype=pick_dtype(arguments.dtype, None, torch.device("cpu")),
        codec=arguments.codec,
        thin=_thin_options(arguments),
        policy=arguments.policy,
        only_peers=tuple(arguments.only) if arguments.only else None,
        explain=getattr(arguments, "explain", False),
        anchors=_anchors(arguments),
        audit_rate=arguments.audit_rate,
        shadow_rate=arguments.shadow_rate,
        calibration=arguments.calibration,
        ask_anchors=arguments.ask_anchors,
    )


def _thin_options(arguments: Arguments) -> ThinOptions | None:
    from node.run.generate import ThinOptions

    if arguments.thin:
        return ThinOptions(arguments.server_sampling, arguments.num_logits, arguments.manifest)
    if arguments.server_sampling or arguments.num_logits or arguments.manifest:
        raise UserError("--server-sampling, --num-logits and --manifest go with --thin; add it, or leave them out.")
    return None


def _add_generate(commands: Commands) -> None:
    parser = _command(commands, "generate", _generate, "continue a prompt through a swarm; the text goes to stdout")
    _add_generation(parser)
    parser.add_argument(
        "--prompt", type=given.text, required=True, help="text to continue; - reads it from standard input"
    )
    parser.add_argument("--explain", action="store_true", help="say of every server why the route takes it or not")
    parser.add_argument("--exit-with-stdin", action="store_true", help="end when standard input ends")


def _generate(arguments: Arguments) -> int:
    if arguments.prompt == "-" and arguments.exit_with_stdin:
        raise UserError("--prompt - reads standard input to its end; leave out --exit-with-stdin.")
    options = _generation_options(arguments, _read_input() if arguments.prompt == "-" else arguments.prompt)
    from node.run.generate import run_generate

    options = dataclasses.replace(options, exit_with_stdin=arguments.exit_with_stdin)
    run_generate(options, _reporter(arguments))
    return 0


def _read_input() -> str:
    try:
        return given.text(sys.stdin.read())
    except (UnicodeDecodeError, argparse.ArgumentTypeError):
        raise UserError("The prompt on standard input is not UTF-8 text; convert it first.") from None


def _add_chat(commands: Commands) -> None:
    _add_generation(_command(commands, "chat", _chat, "talk to a model through a swarm, line by line"))


def _chat(arguments: Arguments) -> int:
    options = _generation_options(arguments, "")
    from node.run.chat import run_chat

    run_chat(options, _reporter(arguments))
    return 0


# ------------------------------------------------------------------ status, doctor, receipts, statement, identity


def _add_status(commands: Commands) -> None:
    parser = _command(commands, "status", _status, "who serves what in a swarm, and what is missing")
    _add_join(parser)
    _add_anchors(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _status(arguments: Arguments) -> int:
    join = _join(arguments)
    from node.run.lifetime import run_loop
    from node.run.status import run_status

    run_loop(lambda: run_status(join, _anchors(arguments), default_home(), as_json=arguments.json))
    return 0


def _add_score(commands: Commands) -> None:
    parser = _command(commands, "score", _score, "where a peer stands in a swarm, and why")
    parser.add_argument("peer", metavar="PEER_ID", help="who; ids stand in `efedllm status --json`")
    _add_join(parser)
    _add_anchors(parser)
    parser.add_argument("--why", action="store_true", help="also tell which records are behind it")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _score(arguments: Arguments) -> int:
    join = _join(arguments)
    from node.run.lifetime import run_loop
    from node.run.score import ScoreOptions, run_score

    options = ScoreOptions(arguments.peer, join, default_home(), _anchors(arguments), arguments.why, arguments.json)
    run_loop(lambda: run_score(options))
    return 0


def _add_claims(commands: Commands) -> None:
    parser = _command(commands, "claims", _claims, "who accuses whom of false work in a swarm, and what came of it")
    _add_join(parser)
    _add_anchors(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _claims(arguments: Arguments) -> int:
    join = _join(arguments)
    from node.run.claims import run_claims
    from node.run.lifetime import run_loop

    run_loop(lambda: run_claims(join, _anchors(arguments), default_home(), as_json=arguments.json))
    return 0


def _add_doctor(commands: Commands) -> None:
    summary = "what this machine can give, whether its parts work, and what joining a swarm would give"
    parser = _command(commands, "doctor", _doctor, summary)
    parser.add_argument("model", metavar="MODEL", nargs="?", help="also say how many blocks of this model fit here")
    parser.add_argument("--revision", help="revision on the hub")
    _add_join(parser)
    what = parser.add_argument_group("of MODEL", "As for `efedllm serve`: the forecast is of that very command.")
    _add_wanted(what)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _doctor(arguments: Arguments) -> int:
    join = _join(arguments) if arguments.model and arguments.join else None
    _check_doctor(arguments)
    from node.run.doctor import DoctorOptions, run_doctor
    from node.run.lifetime import run_loop

    options = DoctorOptions(
        model=arguments.model,
        revision=arguments.revision,
        home=default_home(),
        join=join,
        wanted=_wanted(arguments),
        num_threads=arguments.num_threads,
        as_json=arguments.json,
    )
    return 0 if run_loop(lambda: run_doctor(options)) else 1


def _check_doctor(arguments: Arguments) -> None:
    """Refuse options that say something of a model where none is named; a swarm may stand in the environment."""
    if arguments.model:
        return
    named = ("revision", "blocks", "num_blocks", "quantize", "max_memory")
    given = [f"--{name.replace('_', '-')}" for name in named if getattr(arguments, name) is not None]
    given += ["--join"] if arguments.join != default_join() else []
    if given:
        raise UserError(f"{' and '.join(given)} need a MODEL; write `efedllm doctor MODEL {given[0]} ...`.")


def _add_receipts(commands: Commands) -> None:
    summary = "the receipts that this node holds, or with --join those of a swarm; every signature is checked again"
    parser = _command(commands, "receipts", _receipts, summary)
    parser.add_argument(
        "--provider", metavar="PEER_ID", action="append", default=[], help="who worked; may be repeated"
    )
    parser.add_argument(
        "--consumer", metavar="PEER_ID", action="append", default=[], help="whom it was for; may be repeated"
    )
    _add_since(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--join", metavar="CODE", help="read the DHT of this swarm instead (EFEDLLM_JOIN is not asked)")
    where.add_argument("--verify", action="store_true", help="also check the receipts that newer ones have replaced")
    parser.add_argument(
        "--repair", action="store_true", help="with --join: add to this node's ledger what it lacks of its own"
    )
    form = parser.add_mutually_exclusive_group()
    for name, what in (("json", "one JSON object a line"), ("csv", "CSV with a header")):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=f"print {what}")
    parser.set_defaults(form="table")


def _add_since(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--since", type=_since, metavar="DATE", help='such as 2026-11-01 (in UTC) or "7 days" (default: all)'
    )


def _receipts(arguments: Arguments) -> int:
    from dht.parameters import parse_join

    join = parse_join(arguments.join) if arguments.join is not None else None
    if arguments.repair and join is None:
        raise UserError("--repair reads the receipts of a swarm; add --join CODE.")
    from node.run.receipts import ReceiptsOptions, run_receipts

    options = ReceiptsOptions(
        home=default_home(),
        providers=tuple(arguments.provider),
        consumers=tuple(arguments.consumer),
        since_s=arguments.since,
        form=arguments.form,
        verify=arguments.verify,
        repair=arguments.repair,
    )
    if join is None:
        return run_receipts(options)
    from node.run.lifetime import run_loop
    from node.run.swarm_receipts import run_swarm_receipts

    return run_loop(lambda: run_swarm_receipts(join, options))


def _add_statement(commands: Commands) -> None:
    summary = "what this node gave and took, who has not signed, and whether its key is safe"
    parser = _command(commands, "statement", _statement, summary)
    _add_since(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _statement(arguments: Arguments) -> int:
    from node.run.statement import StatementOptions, run_statement

    return run_statement(StatementOptions(default_home(), arguments.since, arguments.json))


def _add_identity(commands: Commands) -> None:
    summary = "this node's identity: who it is, whether its key is safe, and copies of it"
    parser = commands.add_parser("identity", help=summary, description=summary)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    shown = _command(actions, "show", _show_identity, "the peer id, made if there is none, and how its key is kept")
    shown.add_argument("--json", action="store_true", help="print one JSON object")
    exported = _command(actions, "export", _export_identity, "write the key to a file that a passphrase opens")
    imported = _command(actions, "import", _import_identity, "make the key in an exported file this node's own")
    for action in (exported, imported):
        action.add_argument("file", metavar="FILE", type=Path)
        action.add_argument(
            "--passphrase-file", metavar="PATH", type=Path, help="read the passphrase here (default: it is asked for)"
        )
    imported.add_argument("--replace", action="store_true", help="put aside the identity that stands here")
    summary = "end this identity, and let a new one inherit in a swarm what it has earned there"
    _add_join(_command(actions, "rotate", _rotate_identity, summary))
    summary = (
        "let a swarm know that this server and a client are yours, so that what it gives lifts the client's requests"
    )
    linked = _command(actions, "link", _link_identity, summary)
    linked.add_argument(
        "--consent",
        metavar="LINE",
        help="what `identity consent` printed where the client is (default: the client here)",
    )
    summary = "agree, as the client here, to be known as used by a server's owner: prints a line for `identity link`"
    consenting = _command(actions, "consent", _consent_identity, summary)
    consenting.add_argument("server", metavar="PEER_ID", help="of the server, as `identity show` says it there")
    for action in (linked, consenting):
        _add_join(action)


def _show_identity(arguments: Arguments) -> int:
    from node.run import identity

    identity.show(default_home(), as_json=arguments.json)
    return 0


def _export_identity(arguments: Arguments) -> int:
    from node.run import identity

    identity.export(default_home(), arguments.file, arguments.passphrase_file)
    return 0


def _import_identity(arguments: Arguments) -> int:
    from node.run import identity

    identity.import_(default_home(), arguments.file, arguments.passphrase_file, replace=arguments.replace)
    return 0


def _rotate_identity(arguments: Arguments) -> int:
    join = _join(arguments)
    from node.run.lifetime import run_loop
    from node.run.rotation import rotate

    run_loop(lambda: rotate(default_home(), join))
    return 0


def _link_identity(arguments: Arguments) -> int:
    join = _join(arguments)
    from node.run.affiliation import link
    from node.run.lifetime import run_loop

    run_loop(lambda: link(default_home(), join, arguments.consent))
    return 0


def _consent_identity(arguments: Arguments) -> int:
    join = _join(arguments)
    from node.run.affiliation import consent
    from node.run.lifetime import run_loop

    run_loop(lambda: consent(default_home(), join, arguments.server))
    return 0


# ------------------------------------------------------------------------------------------------------- calibrate


def _add_calibrate(commands: Commands) -> None:
    summary = (
        "measure what error honest servers of a model have, for those who check work, and what that separates from"
    )
    parser = _command(commands, "calibrate", _calibrate, summary)
    _add_model(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("calibration.json"),
        metavar="FILE",
        help="where to write it (default: %(default)s)",
    )
    parser.add_argument(
        "--chunks", type=given.count, default=64, metavar="N",
        help="how much text is run, in chunks of 64 tokens; a quarter of it is for the table (default: 64)",
    )  # fmt: skip
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="text to run, unlike what the model was trained on (default: its own)"
    )
    parser.add_argument("--seed", type=given.seed, default=0, help="seed of the text and of what is drawn")
    parser.add_argument(
        "--full", action="store_true", help="measure every span, codec and way to compute; takes several times as long"
    )
    parser.add_argument(
        "--num-threads", type=given.threads, metavar="N", help="threads to compute with (default: torch's)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    _add_events(form)


def _calibrate(arguments: Arguments) -> int:
    from node.run.calibrate import CalibrateOptions, run_calibrate

    options = CalibrateOptions(
        model=arguments.model,
        revision=arguments.revision,
        home=default_home(),
        out=arguments.out,
        num_chunks=arguments.chunks,
        text=arguments.text,
        seed=arguments.seed,
        full=arguments.full,
        as_json=arguments.json,
        num_threads=arguments.num_threads,
    )
    run_calibrate(options, _reporter(arguments))
    return 0


# ---------------------------------------------------------------------------------------------------------- verify


def _add_verify(commands: Commands) -> None:
    summary = "check the servers of a model by sessions of your own, and publish what was found"
    parser = _command(commands, "verify", _verify, summary)
    _add_model(parser)
    _add_join(parser)
    _add_calibration(parser)
    parser.add_argument(
        "--max-memory", type=given.size, metavar="SIZE",
        help="bound for the blocks that work is checked with, such as 6GiB (default: half of what is free)",
    )  # fmt: skip
    parser.add_argument(
        "--canaries-per-epoch", type=given.count, default=24, metavar="N",
        help="sessions to run in an epoch, at drawn times (default: 24; an epoch has 6 hours unless its founder said "
        "otherwise)",
    )  # fmt: skip
    parser.add_argument(
        "--num-threads", type=given.threads, metavar="N", help="threads to compute with (default: torch's)"
    )
    _add_addresses(parser)
    _add_events(parser)
    parser.add_argument("--exit-with-stdin", action="store_true", help="end when standard input ends")


def _verify(arguments: Arguments) -> int:
    join = _join_text(arguments)
    _join(arguments)  # A damaged code is said before anything heavy is imported.
    from node.run.lifetime import run_loop
    from node.run.verifier import VerifyOptions, run_verifier

    options = VerifyOptions(
        model=arguments.model,
        revision=arguments.revision,
        home=default_home(),
        join=join,
        calibration=arguments.calibration,
        max_memory_bytes=arguments.max_memory,
        canaries_per_epoch=arguments.canaries_per_epoch,
        num_threads=arguments.num_threads,
        listen=tuple(arguments.listen or (DEFAULT_LISTEN,)),
        announce=tuple(arguments.announce),
        exit_with_stdin=arguments.exit_with_stdin,
    )
    reporter = _reporter(arguments)
    run_loop(lambda: run_verifier(options, reporter))
    return 0


def _since(text: str) -> int:
    import time

    from node.run.since import parse_since

    try:
        return parse_since(text, time.time())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
