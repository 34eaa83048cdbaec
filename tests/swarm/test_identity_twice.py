"""One identity runs once: in its own directory, and copied into another."""

import shutil

from tests.families import NUM_BLOCKS
from tests.processes import run_command


def serve_with(llama, home):
    arguments = ["serve", str(llama.directory), "--join", llama.join, "--blocks", f"0:{NUM_BLOCKS}", "--device", "cpu"]
    return run_command(arguments, home)


def last_line_alone(text):
    """Return the sentence of a failed command; what it said before is for people, and no trace of an error."""
    assert "Traceback" not in text
    (sentence,) = [line for line in text.splitlines() if line.startswith("efedllm: ")]
    assert text.endswith(sentence + "\n")
    return sentence


def test_a_second_node_with_the_same_home_is_refused(llama):
    running = llama.servers[0]
    done = serve_with(llama, running.home)
    assert done.returncode == 13, done.stderr
    assert done.stdout == ""
    assert str(running.home) in last_line_alone(done.stderr)
    assert running.returncode is None


def test_a_copy_of_the_identity_of_a_running_node_is_refused(llama, tmp_path):
    running = llama.servers[0]
    shutil.copy(running.home / "identity", tmp_path / "identity")
    done = serve_with(llama, tmp_path)
    assert done.returncode == 13, done.stderr
    assert done.stdout == ""
    assert "another running node" in last_line_alone(done.stderr)
    assert running.returncode is None
