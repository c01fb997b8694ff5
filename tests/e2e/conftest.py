from tests.support.plugin import backend, gateway, pytest_runtest_makereport, recorder

__all__ = ["backend", "gateway", "pytest_runtest_makereport", "recorder"]
