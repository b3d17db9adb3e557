"""What the operator's metrics show before anything has happened."""

import subprocess
import sys


def test_failed_passes_are_counted_from_zero_so_that_an_alert_sees_the_first_one() -> None:
    code = "import mint_operator.metrics, prometheus_client as p; print(p.generate_latest().decode())"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert 'mint_operator_passes_total{outcome="failed"} 0.0' in shown
