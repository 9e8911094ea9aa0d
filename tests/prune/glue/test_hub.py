"""With a hub and without: a local server stands in for it, reached through HF_ENDPOINT."""

import base64
import json
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trisparse.prune.glue.demo import make_model
from trisparse.prune.glue.demo_data import write_task

pytest.importorskip("transformers")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as an upload of small files needs."""

    def _answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        server, body = self.server, self._body()
        server.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            server.created.append(json.loads(body))
            if server.refuses:
                return self._answer(403, {"error": "you may not"})
            return self._answer(
                200, {"url": f"http://127.0.0.1:{server.server_port}/me/tiny", "name": "me/tiny", "id": "me/tiny"}
            )
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self._answer(
                200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        if "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            url = f"http://127.0.0.1:{server.server_port}/me/tiny/commit/0"
            return self._answer(200, {"commitUrl": url, "commitOid": "0" * 40, "success": True})
        return self._answer(200, {})

    def do_GET(self):
        if self.server.refuses:
            return self._answer(403, {"error": "you may not"})
        if self.path.startswith("/api/models/me/tiny"):
            return self._answer(
                200, {"id": "me/tiny", "modelId": "me/tiny", "sha": "0" * 40, "siblings": [], "private": False}
            )
        return self._answer(404, {"error": "no such thing"})

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.created, server.files, server.tokens, server.refuses = [], {}, set(), False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def command(tmp_path, script):
    write_task(tmp_path / "data", "mrpc", train=16, validation=8)
    make_model(tmp_path / "init")

    def run(endpoint, *flags, data=True):
        argv = [script("trisparse-glue"), "--model_name_or_path", str(tmp_path / "init"), "--task_name", "mrpc"]
        argv += ["--output_dir", str(tmp_path / "out"), "--max_train_steps", "1", *flags]
        argv += ["--dataset_dir", str(tmp_path / "data")] if data else []
        env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        return subprocess.run(argv, capture_output=True, text=True, env=env)

    return run


def test_the_result_is_uploaded(hub, command, tmp_path):
    (tmp_path / "out" / "notes").mkdir(parents=True)
    (tmp_path / "out" / "notes" / "mine.json").write_text("{}")
    (tmp_path / "out" / "mine.txt").write_text("not for the hub")
    flags = ["--push_to_hub", "--hub_model_id", "me/tiny", "--hub_token", "hf_secret", "--overwrite_output_dir"]
    result = command(f"http://127.0.0.1:{hub.server_port}", *flags)
    assert result.returncode == 0, result.stderr
    assert "uploaded to" in result.stdout
    assert hub.created[0]["name"] == "tiny"
    wanted = {"model.safetensors", "config.json", "tokenizer.json", "all_results.json", "README.md"}
    assert wanted <= set(hub.files)
    assert not {"checkpoint.pt", "mine.txt", "notes/mine.json", "best/model.safetensors"} & set(hub.files)
    assert hub.files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert hub.tokens == {"Bearer hf_secret"}
    assert "hf_secret" not in hub.files["all_results.json"].decode()


def test_a_refused_upload_leaves_the_run_on_disk(hub, command, tmp_path):
    hub.refuses = True
    result = command(
        f"http://127.0.0.1:{hub.server_port}", "--push_to_hub", "--hub_model_id", "me/tiny", "--hub_token", "hf_x"
    )
    assert result.returncode == 2
    assert "--push_to_hub: me/tiny was not uploaded" in result.stderr.splitlines()[-1]
    assert (tmp_path / "out" / "all_results.json").exists()


def test_no_network_and_no_data_is_one_line(command, tmp_path):
    result = command("http://127.0.0.1:9", data=False)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("trisparse-glue: error: --dataset_dir: not given, and nyu-mll/glue can't be fetched")
    assert not (tmp_path / "out").exists()
