"""The two bundles of the server's tests."""

from tests.ctr.serving.server.conftest import bundles, exported_bundles

__all__ = ["bundles", "exported_bundles"]
