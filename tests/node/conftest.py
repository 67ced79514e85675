from conftest_node import node  # noqa: F401
