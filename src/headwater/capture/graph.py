"""The autograd graph of one loss: its nodes, its trunk, and what each operation on the trunk does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

__all__ = ["AutogradGraph", "Node", "operation_kind", "walk"]

Node = Any  # torch.autograd.graph.Node; its stubs lack next_functions
OperationKind = Literal[
    "weights", "activation", "normalization", "residual", "attention", "recurrent", "embedding", "pooling", "dropout",
    "scale", "reshape", "loss", "other",
]  # fmt: skip

# What an operation does to the gradient, by the name of its autograd node (without "Backward0"). The names are
# those of torch's derivatives.yaml; an unknown one is "other".
_KINDS: tuple[tuple[OperationKind, str], ...] = (
    ("reshape", r"View|UnsafeView|ReshapeAlias|Reshape|Transpose|Permute|T|Unsqueeze|Squeeze|Alias|Clone|Contiguous"
                r"|Expand|AsStrided|ToCopy|Movedim|Unflatten|Detach|Identity|Swapaxes|NumpyT|MT|Adjoint|Unbind"
                r"|AsView|CopySlices|ViewAsReal|ViewAsComplex|SplitWithSizes|Split|UnsafeSplit|Chunk|Cat|Stack"),
    ("weights", r"Addmm|Mm|Linear|MkldnnLinear|Addmv|Mv|Addbmm|Bilinear|Trilinear|Einsum|Convolution\w*|\w*Convolution"
                r"|ConvolutionOverrideable|ThnnConv2D|SlowConv\w*|MkldnnConvolution|CudnnConvolution|WeightNorm\w*"),
    ("embedding", r"Embedding\w*|EmbeddingBag\w*|EmbeddingRenorm"),
    ("normalization", r"NativeBatchNorm|CudnnBatchNorm|MiopenBatchNorm|NativeLayerNorm|NativeGroupNorm|FusedRmsNorm"
                      r"|RmsNorm|\w*BatchNorm\w*|\w*LayerNorm\w*|\w*GroupNorm\w*|LinalgVectorNorm"),
    ("activation", r"Relu|Relu6|Threshold|LeakyRelu|Prelu\w*|Elu|Selu|Celu|Gelu|Silu|Mish|Sigmoid|LogSigmoid\w*|Tanh"
                   r"|Softplus|Softshrink|Hardshrink|Hardtanh|Hardsigmoid|Hardswish|Clamp\w*|Glu|RreluWithNoise\w*"
                   r"|Sin|Cos|Erf|Sign|Round|Abs|Sqrt|Rsqrt|Exp|Log|Log1P|Pow|Reciprocal|Where"),
    ("attention", r"Bmm|Baddbmm|Softmax|ScaledDotProduct\w*|EfficientAttention\w*|FlashAttention\w*"),
    ("recurrent", r"MkldnnRnnLayer|CudnnRnn|MiopenRnn|ThnnFusedLstmCell\w*|ThnnFusedGruCell\w*"),
    ("pooling", r"\w*MaxPool\w*|\w*AvgPool\w*|AdaptiveMaxPool\w*|FractionalMaxPool\w*|MaxUnpool\w*|Mean|Sum|Amax|Amin"
                r"|Max|Min|Prod|Logsumexp|Select|Slice|Index\w*|Gather|Take\w*|MaskedSelect|Upsample\w*"),
    ("dropout", r"NativeDropout|FusedDropout|Dropout|Bernoulli|FeatureDropout|AlphaDropout"),
    ("residual", r"Add|Sub|Lerp|Addcmul|Addcdiv"),
    ("scale", r"Mul|Div|Neg|MaskedFill|ConstantPadNd|\w*Pad\w*"),
    ("loss", r"NllLoss\w*|MseLoss|L1Loss|SmoothL1Loss|HuberLoss|BinaryCrossEntropy\w*|KlDiv|CtcLoss|LogSoftmax"
             r"|SoftMarginLoss|Multilabel\w*|MultiMargin\w*|PoissonNllLoss|CosineEmbeddingLoss|Nll\w*|CrossEntropy\w*"),
)  # fmt: skip
_COMPILED = tuple((kind, re.compile(rf"(?:{pattern})$")) for kind, pattern in _KINDS)
_SUFFIX = re.compile(r"Backward\d*$")


def operation_kind(name: str) -> OperationKind:
    """What an autograd operation does to the gradient that passes through it.

    Args:
        name: of the node, such as ``AddmmBackward0``.

    Returns:
        Its kind; ``other`` for an operation that is not known.
    """
    bare = _SUFFIX.sub("", name)
    for kind, pattern in _COMPILED:
        if pattern.match(bare):
            return kind
    return "other"


@dataclass
class AutogradGraph:
    """Every node between a loss and its leaves, in topological order, the loss first.

    Attributes:
        nodes: the nodes; an edge always leads from a smaller to a larger index.
        index: node to position in ``nodes``.
        edges: per node, the positions of the nodes that it passes gradients to.
        leaves: position to the leaf tensor, for every ``AccumulateGrad`` node.
    """

    nodes: list[Node]
    index: dict[Node, int]
    edges: list[tuple[int, ...]]
    leaves: dict[int, torch.Tensor]

    def depths(self) -> list[int]:
        """Length of the longest path from the loss to each node."""
        depth = [0] * len(self.nodes)
        for i, targets in enumerate(self.edges):
            for j in targets:
                depth[j] = max(depth[j], depth[i] + 1)
        return depth

    def reaching(self, target: int) -> list[bool]:
        """For each node, whether a gradient that leaves it can arrive at ``target``."""
        reach = [False] * len(self.nodes)
        reach[target] = True
        for i in range(target - 1, -1, -1):
            reach[i] = any(reach[j] for j in self.edges[i])
        return reach

    def between(self, above: int, below: int) -> set[int]:
        """The nodes on paths from one dominator of a target to another, ``below`` included, ``above`` not.

        Args:
            above: the one nearer the loss.
            below: the one nearer the target.

        Returns:
            Positions; all of them lie between the two in topological order, so the cost is that of the region.
        """
        reach = {below}
        for i in range(below - 1, above, -1):
            if any(j in reach for j in self.edges[i]):
                reach.add(i)
        return reach

    def dominators(self, target: int) -> list[int]:
        """The nodes that every path from the loss (node 0) to ``target`` passes through.

        In topological order a node dominates the target exactly when no edge that can lead to the target jumps over
        it; one sweep finds them all (networkx's ``immediate_dominators`` gives the same chain and is its test).

        Args:
            target: a node's position.

        Returns:
            Positions from the loss to the target, both included.
        """
        reach = self.reaching(target)
        chain, furthest = [], 0
        for i in range(target + 1):
            if not reach[i]:
                continue
            if furthest <= i:
                chain.append(i)
            furthest = max([furthest, *(j for j in self.edges[i] if reach[j])])
        return chain

    def parameter_consumers(self, parameters: Iterable[torch.Tensor]) -> dict[int, list[int]]:
        """The operations that use each parameter.

        Args:
            parameters: leaf tensors.

        Returns:
            ``id(parameter)`` to the positions of the nodes that take it, directly or through views of it (the
            transpose in a Linear), the one nearest the input first.
        """
        wanted = {id(p) for p in parameters}
        leaf_of = {i: id(t) for i, t in self.leaves.items() if id(t) in wanted}
        consumers: dict[int, list[int]] = {}
        carries: dict[int, set[int]] = {i: {p} for i, p in leaf_of.items()}
        for i in range(len(self.nodes) - 1, -1, -1):
            below = [j for j in self.edges[i] if j in carries]
            if not below:
                continue
            if len(self.edges[i]) == 1 and operation_kind(self.nodes[i].name()) == "reshape":
                carries[i] = set().union(*(carries[j] for j in below))
                continue
            for parameter in set().union(*(carries[j] for j in below)):
                consumers.setdefault(parameter, []).append(i)
        return consumers


def walk(roots: Sequence[Node]) -> AutogradGraph:
    """List an autograd graph from its loss down to the leaves.

    Args:
        roots: ``grad_fn`` of the loss (one node; several are allowed where a graph has no single root, and then the
            first becomes node 0).

    Returns:
        The graph.
    """
    postorder: list[Node] = []
    seen: set[Node] = set()
    for root in reversed(roots):
        if root in seen:
            continue
        seen.add(root)
        stack: list[tuple[Node, Any]] = [(root, iter(root.next_functions))]
        while stack:
            node, pending = stack[-1]
            for following, _ in pending:
                if following is not None and following not in seen:
                    seen.add(following)
                    stack.append((following, iter(following.next_functions)))
                    break
            else:
                postorder.append(node)
                stack.pop()
    nodes = postorder[::-1]
    index = {node: i for i, node in enumerate(nodes)}
    edges = [
        tuple(dict.fromkeys(index[following] for following, _ in node.next_functions if following is not None))
        for node in nodes
    ]
    leaves = {i: node.variable for i, node in enumerate(nodes) if hasattr(node, "variable")}
    return AutogradGraph(nodes, index, edges, leaves)
