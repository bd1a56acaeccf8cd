"""Ray gets its share of a machine that is busy with other tests, and more time to start; it reads this on import."""

import os

os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "60")
os.environ.setdefault("RAY_worker_niceness", "0")
