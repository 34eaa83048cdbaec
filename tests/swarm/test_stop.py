"""A server that is told to stop says goodbye, however early."""

import signal

from tests.families import NUM_BLOCKS
from tests.processes import NodeProcess
from tests.swarm.models import SPANS


def test_a_server_told_to_stop_as_soon_as_it_is_ready_withdraws_its_announcement(llama, tmp_path):
    arguments = ["serve", str(llama.directory), "--join", llama.join, "--blocks", f"0:{NUM_BLOCKS}", "--device", "cpu"]
    server = NodeProcess(arguments, tmp_path)
    try:
        ready = server.ready()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    finally:
        server.stop()
    assert ready["blocks"] == f"0:{NUM_BLOCKS}"
    assert server.errors[-1] == "Stopping (SIGTERM): the announcement is withdrawn."
    # Without a withdrawal the announcement would stand for most of a minute.
    listed = [announcement.owner for announcement in llama.remote._connector.directory().servers]
    assert ready["peer_id"] not in listed
    assert len(listed) == len(SPANS)
