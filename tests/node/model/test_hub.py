import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import LlamaConfig, LlamaForCausalLM

from node.errors import DamagedCheckpoint, DoesNotFit, ModelNotFound, UnavailableError
from node.model import resumable_download
from node.model.checkpoint import Checkpoint
from node.model.digests import hash_file
from tests.hub_server import serve_hub

ROOT = Path(__file__).parents[3]
CONFIG = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, vocab_size=99)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """The same model in one file and in shards of about a block each."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    root = tmp_path_factory.mktemp("models")
    model.save_pretrained(root / "whole")
    model.save_pretrained(root / "sharded", max_shard_size="170KB")
    return root


@pytest.fixture
def hub(directories):
    with serve_hub({"org/whole": directories / "whole", "org/sharded": directories / "sharded"}) as server:
        yield server


# The other tests run with the hub switched off; these have one of their own.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS")
}


@pytest.fixture(autouse=True)
def _hub_switched_on(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(resumable_download, "_PAUSE_S", 0.01)


def open_hub(hub, repo, tmp_path, **options):
    return Checkpoint.open(repo, endpoint=hub.endpoint, cache_dir=tmp_path / "cache", home=tmp_path / "home", **options)


def weights_on_disk(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").glob("models--*/snapshots/*/*.safetensors"))


@pytest.mark.parametrize("repo", ["whole", "sharded"])
def test_the_same_model_has_one_manifest_in_a_directory_and_on_a_hub(repo, hub, directories, tmp_path):
    remote = open_hub(hub, f"org/{repo}", tmp_path)
    local = Checkpoint.open(str(directories / repo))
    assert remote.manifest32 == local.manifest32
    assert remote.short_name == local.short_name
    assert weights_on_disk(tmp_path) == []
    assert not [file for file in hub.downloads() if file.endswith(".safetensors") and repo == "sharded"]


@pytest.mark.parametrize("repo", ["whole", "sharded"])
def test_names_and_sizes_are_known_before_any_weight_is_downloaded(repo, hub, directories, tmp_path):
    remote = open_hub(hub, f"org/{repo}", tmp_path)
    local = Checkpoint.open(str(directories / repo))
    assert remote.tensor_names() == local.tensor_names()
    assert remote.span_bytes(1, 3, torch.float16) == local.span_bytes(1, 3, torch.float16)
    assert remote.client_bytes() == local.client_bytes()
    assert weights_on_disk(tmp_path) == []


def test_only_the_shards_of_the_span_are_downloaded(hub, directories, tmp_path):
    remote = open_hub(hub, "org/sharded", tmp_path)
    local = Checkpoint.open(str(directories / "sharded"))
    span = remote.load_span(2, 3)
    expected = local.load_span(2, 3)
    assert span.keys() == expected.keys()
    assert all(torch.equal(span[name], expected[name]) for name in expected)
    needed = {local._file_of[name] for name in local.tensor_names() if ".layers.2." in name}
    assert set(weights_on_disk(tmp_path)) == needed
    assert len(needed) < len(list((directories / "sharded").glob("*.safetensors")))


def test_a_second_load_downloads_nothing(hub, tmp_path):
    open_hub(hub, "org/sharded", tmp_path).load_span(0, 4)
    hub.requests.clear()
    open_hub(hub, "org/sharded", tmp_path).load_span(0, 4)
    assert hub.downloads() == []


def test_one_progress_covers_all_shards_and_ends_at_its_total(hub, tmp_path):
    seen = []
    remote = open_hub(hub, "org/sharded", tmp_path, progress=lambda *report: seen.append(report))
    remote.load_span(0, 4)
    downloading = [(done, total) for what, done, total in seen if what == "downloading sharded"]
    assert len({total for _, total in downloading}) == 1
    assert [done for done, _ in downloading] == sorted(done for done, _ in downloading)
    assert (
        downloading[-1][0]
        == downloading[-1][1]
        == sum(path.stat().st_size for path in (tmp_path / "cache").glob("models--*/snapshots/*/*.safetensors"))
    )
    reading = [(done, total) for what, done, total in seen if what == "reading sharded"]
    assert reading[-1][0] == reading[-1][1] == remote.span_bytes(0, 4)


def test_a_connection_cut_inside_a_file_is_taken_up_where_it_broke(hub, directories, tmp_path):
    size_bytes = (directories / "whole" / "model.safetensors").stat().st_size
    remote = open_hub(hub, "org/whole", tmp_path)
    remote.tensor_names()  # the header's range request is behind us
    hub.sent_bytes.clear()
    hub.cut_after_bytes["model.safetensors"] = [200_000, 100_000, 0]
    span = remote.load_span(0, 4)
    assert hub.sent_bytes["model.safetensors"] == size_bytes
    assert torch.equal(
        span["model.layers.3.mlp.down_proj.weight"],
        Checkpoint.open(str(directories / "whole")).load_span(3, 4)["model.layers.0.mlp.down_proj.weight"],
    )


def test_a_hub_without_ranges_is_read_from_the_start_again(hub, directories, tmp_path):
    remote = open_hub(hub, "org/whole", tmp_path)
    remote.tensor_names()
    hub.ignores_ranges = True
    hub.cut_after_bytes["model.safetensors"] = [200_000]
    reports = []
    remote._progress = lambda *report: reports.append(report)
    span = remote.load_span(0, 1)
    assert len(span) == 9
    done, total = [report[1:] for report in reports if report[0].startswith("downloading")][-1]
    assert done == total


def test_a_hub_that_keeps_breaking_off_is_given_up_and_taken_up_by_the_next_start(hub, directories, tmp_path):
    size_bytes = (directories / "whole" / "model.safetensors").stat().st_size
    remote = open_hub(hub, "org/whole", tmp_path)
    remote.tensor_names()
    hub.cut_after_bytes["model.safetensors"] = [200_000, 0, 0, 0, 0, 0]
    with pytest.raises(UnavailableError, match=r"stopped at 200000 of \d+ bytes.*goes on from there"):
        remote.load_span(0, 1)
    hub.cut_after_bytes.clear()
    hub.sent_bytes.clear()
    again = open_hub(hub, "org/whole", tmp_path)
    again.tensor_names()
    header_bytes = hub.sent_bytes.pop("model.safetensors")
    again.load_span(0, 1)
    assert header_bytes <= 128 * 1024
    assert hub.sent_bytes["model.safetensors"] == size_bytes - 200_000


def test_a_download_ended_by_a_kill_goes_on_where_it_stopped(hub, directories, tmp_path):
    size_bytes = (directories / "whole" / "model.safetensors").stat().st_size
    hub.cut_after_bytes["model.safetensors"] = [128 * 1024, 200_000] + [0] * 5
    script = (
        "import sys, pathlib\n"
        "from node.model import resumable_download\n"
        "from node.model.checkpoint import Checkpoint\n"
        "resumable_download._PAUSE_S = 60\n"
        "home = pathlib.Path(sys.argv[2])\n"
        "Checkpoint.open('org/whole', endpoint=sys.argv[1], cache_dir=home / 'cache', home=home).load_span(0, 1)\n"
    )
    partials = tmp_path / "cache" / "models--org--whole" / "blobs"
    deadline_s = time.monotonic() + 60
    with subprocess.Popen(
        [sys.executable, "-c", script, hub.endpoint, str(tmp_path)], cwd=ROOT, env=ENVIRONMENT
    ) as process:
        try:
            while not any(path.stat().st_size == 200_000 for path in partials.glob("*.partial")):
                assert process.poll() is None
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
        finally:
            process.kill()
    hub.cut_after_bytes.clear()
    hub.sent_bytes.clear()
    remote = open_hub(hub, "org/whole", tmp_path)
    remote.tensor_names()
    hub.sent_bytes.clear()
    remote.load_span(0, 1)
    assert hub.sent_bytes["model.safetensors"] == size_bytes - 200_000
    assert not list(partials.glob("*.partial"))


def test_a_file_that_is_not_what_the_hub_describes_is_refused_and_forgotten(hub, tmp_path):
    remote = open_hub(hub, "org/sharded", tmp_path)
    names = {remote._file_of[name] for name in remote.tensor_names() if ".layers.1." in name}
    remote.span_bytes(0, 4)
    hub.lies_about = names
    with pytest.raises(UnavailableError, match="is not the file that the hub describes"):
        remote.load_span(1, 2)
    assert weights_on_disk(tmp_path) == []
    hub.lies_about = set()
    assert len(remote.load_span(1, 2)) == 9


def test_a_bad_first_part_left_by_an_earlier_start_is_fetched_again(hub, directories, tmp_path):
    digest = hash_file(directories / "whole" / "model.safetensors").hex()
    partial = tmp_path / "cache" / "models--org--whole" / "blobs" / f"{digest}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"not the model" * 1000)
    reports = []
    remote = open_hub(hub, "org/whole", tmp_path, progress=lambda *report: reports.append(report))
    assert len(remote.load_span(0, 1)) == 9
    done, total = [report[1:] for report in reports if report[0].startswith("downloading")][-1]
    assert done == total
    assert not partial.exists()


def test_a_weight_file_without_a_digest_in_the_metadata_is_fetched_and_hashed(hub, directories, tmp_path):
    hub.keeps_in_git = {"model.safetensors"}
    assert open_hub(hub, "org/whole", tmp_path).manifest32 == Checkpoint.open(str(directories / "whole")).manifest32


def test_an_exception_from_progress_ends_the_download(hub, tmp_path):
    def stop(what, done_bytes, total_bytes):
        if done_bytes > 0:
            raise KeyboardInterrupt

    remote = open_hub(hub, "org/sharded", tmp_path, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        remote.load_span(0, 4)
    assert weights_on_disk(tmp_path) == []


def test_a_cached_file_of_another_size_is_refused_with_the_mend(hub, tmp_path):
    open_hub(hub, "org/whole", tmp_path).load_span(0, 1)
    blob = next((tmp_path / "cache").glob("models--*/snapshots/*/*.safetensors")).resolve()
    os.truncate(blob, blob.stat().st_size - 1)
    with pytest.raises(DamagedCheckpoint, match="delete the file, and it is fetched again"):
        open_hub(hub, "org/whole", tmp_path).load_span(0, 1)


def test_a_disk_without_room_is_told_before_the_download(hub, tmp_path, monkeypatch):
    remote = open_hub(hub, "org/whole", tmp_path)
    remote.tensor_names()
    hub.requests.clear()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DoesNotFit, match="make room under"):
        remote.load_span(0, 1)
    assert hub.downloads() == []


def test_a_token_is_sent_to_the_hub_alone(hub, directories, tmp_path):
    with serve_hub({"org/whole": directories / "whole"}) as elsewhere:
        hub.redirects_to = elsewhere.endpoint
        open_hub(hub, "org/whole", tmp_path, token="hf_secret").load_span(0, 1)
    assert "Bearer hf_secret" in hub.tokens
    assert elsewhere.downloads()
    assert elsewhere.tokens == {None}


def test_an_unknown_hub_id_is_refused_in_one_sentence(hub, tmp_path):
    with pytest.raises(ModelNotFound, match="neither this directory nor the hub has a model 'org/absent'") as caught:
        open_hub(hub, "org/absent", tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unknown_revision_is_refused_by_name(hub, tmp_path):
    with pytest.raises(ModelNotFound, match="no revision 'v9'"):
        open_hub(hub, "org/whole", tmp_path, revision="v9")


def test_a_gated_model_says_how_to_get_it(hub, tmp_path):
    hub.gated.add("org/whole")
    with pytest.raises(ModelNotFound, match="accept them on its page"):
        open_hub(hub, "org/whole", tmp_path)


def test_a_repository_without_config_is_refused(hub, directories, tmp_path):
    (tmp_path / "empty").mkdir()
    hub.repositories["org/empty"] = tmp_path / "empty"
    with pytest.raises(ModelNotFound, match=r"no config\.json on the hub"):
        open_hub(hub, "org/empty", tmp_path)


def test_a_repository_with_pickled_weights_only_is_refused_with_the_mend(hub, directories, tmp_path):
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((directories / "whole" / "config.json").read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    hub.repositories["org/pickled"] = pickled
    with pytest.raises(ModelNotFound, match="only safetensors are read, so convert"):
        _ = open_hub(hub, "org/pickled", tmp_path).manifest32
    assert "pytorch_model.bin" not in hub.downloads()


def test_a_hub_that_does_not_answer_is_said_so(directories, tmp_path):
    with serve_hub({}) as hub:
        pass
    with pytest.raises(UnavailableError, match="the hub does not answer and org/whole is not in the cache"):
        open_hub(hub, "org/whole", tmp_path)


@pytest.mark.parametrize("with_home", [True, False])
def test_what_is_in_the_cache_works_when_the_hub_is_gone(with_home, directories, tmp_path):
    options = {"cache_dir": tmp_path / "cache", "home": tmp_path / "home" if with_home else None}
    with serve_hub({"org/whole": directories / "whole"}) as hub:
        first = Checkpoint.open("org/whole", endpoint=hub.endpoint, **options)
        first.load_span(0, 2)
        manifest32 = first.manifest32
    later = Checkpoint.open("org/whole", endpoint=hub.endpoint, **options)
    assert later.manifest32 == manifest32
    assert len(later.load_span(0, 2)) == 18


def test_the_switched_off_hub_is_honoured(hub, tmp_path):
    open_hub(hub, "org/sharded", tmp_path).load_span(0, 1)
    hub.requests.clear()
    script = (
        "import sys, pathlib\n"
        "from node.errors import ModelNotFound, UnavailableError\n"
        "from node.model.checkpoint import Checkpoint\n"
        "home = pathlib.Path(sys.argv[1])\n"
        "options = dict(cache_dir=home / 'cache', home=home / 'home')\n"
        "checkpoint = Checkpoint.open('org/sharded', **options)\n"
        "print(len(checkpoint.load_span(0, 1)), checkpoint.short_name)\n"
        "for attempt in (lambda: checkpoint.load_span(3, 4), lambda: Checkpoint.open('org/whole', **options)):\n"
        "    try:\n"
        "        attempt()\n"
        "    except (ModelNotFound, UnavailableError) as error:\n"
        "        print(type(error).__name__, 'without HF_HUB_OFFLINE' in str(error))\n"
    )
    environment = {**ENVIRONMENT, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": hub.endpoint}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"9 {open_hub(hub, 'org/sharded', tmp_path).short_name}",
        "UnavailableError True",
        "ModelNotFound True",
    ]


def test_hf_endpoint_names_the_hub_when_no_argument_does(hub, tmp_path):
    script = (
        "import sys, pathlib\n"
        "from node.model.checkpoint import Checkpoint\n"
        "checkpoint = Checkpoint.open('org/whole', cache_dir=pathlib.Path(sys.argv[1]))\n"
        "print(checkpoint.num_blocks, len(checkpoint.load_client()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT,
        env={**ENVIRONMENT, "HF_ENDPOINT": hub.endpoint},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "4 3\n"), done.stderr
    assert "%|" not in done.stderr  # huggingface_hub draws no bars of its own


def test_tokenizer_files_come_with_the_model(hub, directories, tmp_path):
    copy = tmp_path / "spoken"
    copy.mkdir()
    for file in (directories / "whole").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "tokenizer.json").write_text("{}")
    (copy / "training_log.txt").write_text("not asked for")
    hub.repositories["org/spoken"] = copy
    directory = open_hub(hub, "org/spoken", tmp_path).tokenizer_dir
    assert {path.name for path in directory.iterdir()} == {"config.json", "tokenizer.json", "generation_config.json"}
