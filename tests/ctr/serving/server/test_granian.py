"""The app on Granian, another ASGI server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from ctr.serving.ranker import Ranker
from tests.ctr.serving.shop import REQUEST

START_SECONDS = 240
SCRIPT = """
import sys
from pathlib import Path
from granian import Granian
from granian.constants import Interfaces
from ctr.serving.server.run import MakeApp
from ctr.serving.answering.versions import PointerSource
from ctr.serving.settings import ServeConfig

def load():
    return MakeApp(PointerSource(Path(sys.argv[1])), ServeConfig(), None)()

if __name__ == "__main__":
    Granian("quadrank", port=int(sys.argv[2]), interface=Interfaces.ASGI).serve(target_loader=load, wrap_loader=False)
"""


@pytest.mark.timeout(START_SECONDS)
def test_the_app_answers_on_granian_and_ends_on_sigterm(bundles: Path, tmp_path: Path):
    pytest.importorskip("granian", reason="granian is not installed")
    (tmp_path / "on_granian.py").write_text(SCRIPT)
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(tmp_path / "on_granian.py"), str(bundles / "CURRENT"), str(port)]
    server = subprocess.Popen(command)
    try:
        address = f"http://127.0.0.1:{port}"
        while True:
            try:
                with urllib.request.urlopen(f"{address}/v2/health/ready", timeout=30) as answer:
                    assert json.load(answer) == {"ready": True}
                break
            except urllib.error.URLError:
                assert server.poll() is None, "it ended"
                time.sleep(0.2)
        with urllib.request.urlopen(f"{address}/v1/rank", json.dumps(REQUEST).encode(), timeout=30) as answer:
            ranked = json.load(answer)["ranked"]
        expected = Ranker.load(bundles / "first").rank(REQUEST).ranked
        assert ranked == [pytest.approx({"item": one.item, "score": one.score}) for one in expected]
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(f"{address}/v1/rank", b"{", timeout=30)
        server.terminate()
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
