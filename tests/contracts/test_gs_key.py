"""Pods outside Google Cloud get a service account's key by an environment variable, as docs/platform.md says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.apiserver import ROOT
from tests.contracts.lookup import ASK
from tests.engine import stores


class Google(stores.Files):
    """Exchanges any signed assertion for a token, and notes with which authorization a bucket is read."""

    def do_POST(self) -> None:  # noqa: N802 - the library's name
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"access_token": "of-the-key", "expires_in": 3600, "token_type": "Bearer"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        self.seen.append(self.headers.get("Authorization", ""))
        self.send_error(404)


def test_a_bucket_is_read_as_the_service_account_of_the_key(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "platform.md").read_text()
    [(variable, value)] = re.findall(r'--from-literal=(\w+)="(.*)"', page)
    generated = ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]
    private = subprocess.run(generated, check=True, capture_output=True, text=True).stdout
    with stores.serving(Google, tmp_path) as (address, google):
        key = {"type": "service_account", "client_email": "engines@models.iam.gserviceaccount.com"}
        key |= {"private_key": private, "token_uri": f"http://{address}/token"}
        (tmp_path / "key.json").write_text(json.dumps(key, indent=2))
        literal = subprocess.check_output(["bash", "-c", f'printf %s "{value}"'], cwd=tmp_path, text=True)
        environment = os.environ | {"STORAGE_EMULATOR_HOST": f"http://{address}", variable: literal}
        command = [sys.executable, "-c", ASK, "gs", "gs://bucket/file"]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
        assert set(google.seen) == {"Bearer of-the-key"}
