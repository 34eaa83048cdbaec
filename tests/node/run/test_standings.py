"""Commands judge by what the node that lives in the same home has found final."""

from dht.identity import Identity
from dht.parameters import JoinCode
from dht.swarm import Swarm
from node.claims.notebook import NOTEBOOK, Notebook
from node.run.standings import board_of
from tests.node.claims.test_notebook import ruling


def test_a_command_knows_what_the_node_here_has_kept_by_the_same_anchors(tmp_path):
    join, anchor = JoinCode(()), Identity.ephemeral().peer_id
    notebook = Notebook.open(tmp_path / NOTEBOOK)
    notebook.keep_rulings([ruling()], [anchor])
    swarm = Swarm(Identity.ephemeral(), join=join)
    assert set(board_of(swarm, join, [anchor], tmp_path)._settled) == {ruling().claim}
    assert board_of(swarm, join, [], tmp_path)._settled == {}
    assert board_of(swarm, join, [anchor], tmp_path / "elsewhere")._settled == {}
    notebook.close()
