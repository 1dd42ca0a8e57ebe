"""Makes the optimizer of torch's ONNX exporter faster: its rewrite rules compare operators before anything else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def operators_compared_first() -> Iterator[None]:
    """While this is active, onnxscript compares a rule and a node of the graph by the node's operator first.

    onnxscript (``rewriter/_matcher.py``, ``SimplePatternMatcher.match``) tries every rule at every node. For a pattern
    that ends in several nodes, such as two ``Slice``, it lists all nodes of the graph before it compares the operator
    of this one: the time grows with the square of the number of nodes. The rewritten graph is the same. Nothing
    changes with a version of onnxscript that is built in another way.
    """
    try:
        from onnxscript.rewriter._basics import MatchResult
        from onnxscript.rewriter._matcher import SimplePatternMatcher
    except ImportError:
        yield
        return
    original = SimplePatternMatcher.match

    def match(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        with suppress(AttributeError):
            last = self.pattern.output_nodes[0]
            if not (last.op.matches(node.op_type) and last.domain.matches(node.domain)):
                return MatchResult().fail("The node has another operator.")
        return original(self, model, graph, node, **options)

    SimplePatternMatcher.match = match
    try:
        yield
    finally:
        SimplePatternMatcher.match = original
