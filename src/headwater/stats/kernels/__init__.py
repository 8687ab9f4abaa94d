"""Compiled statistics of tensors in main memory: each tensor is read from memory once.

``moments.c`` is compiled when the package is built (``scripts/build_kernels.py``) and called through ctypes, which
releases the interpreter lock; it needs neither Python's headers nor torch's. Where there is no compiled file, or
``HEADWATER_KERNELS=0`` is set, the plain path of :mod:`headwater.stats` computes the same in torch, and
:func:`status` says why. ``HEADWATER_KERNELS=baseline`` (or ``avx2``, ``avx512``) asks for an instruction set.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor

__all__ = [
    "COMPILED",
    "SOURCES",
    "TARGETS",
    "KernelStatus",
    "Kernels",
    "entries",
    "entry",
    "forget",
    "load",
    "source_digest",
    "status",
]

HERE = Path(__file__).parent
COMPILED = HERE / "_moments.so"
SOURCES = ("moments.c", "moments_targets.h", "moments_lanes.h", "units.h")

TARGETS = ("baseline", "avx2", "avx512")
"""Instruction sets, the plainest first; the others exist on x86-64."""

# Dtypes as moments.c numbers them, and how many real numbers an element holds.
_CODES = {
    torch.float32: (0, 1),
    torch.float64: (1, 1),
    torch.bfloat16: (2, 1),
    torch.float16: (3, 1),
    torch.complex64: (0, 2),
    torch.complex128: (1, 2),
}
_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}

# Subclasses may keep their elements elsewhere, or mean something else by them.
_PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter})
_DTYPE, _IS_CPU, _NBYTES = attrgetter("dtype"), attrgetter("is_cpu"), attrgetter("nbytes")


@dataclass(frozen=True)
class KernelStatus:
    """Which code computes statistics in main memory.

    Attributes:
        in_use: whether it is the compiled one.
        target: its instruction set, ``baseline``, ``avx2`` or ``avx512``; None for the plain path.
        reason: why, in words.
    """

    in_use: bool
    target: str | None
    reason: str

    def __str__(self) -> str:
        return f"compiled statistics ({self.target})" if self.in_use else f"statistics in plain torch: {self.reason}"


class Kernels:
    """The functions of a compiled ``moments.c``.

    Args:
        path: the shared object.
        target: the instruction set to use; None for the best of this processor.

    Raises:
        OSError: it cannot be loaded.
        ValueError: the processor does not have this instruction set.
    """

    def __init__(self, path: Path, target: str | None = None) -> None:
        library = ctypes.CDLL(str(path))
        self._moments, self._norms, self._alive = (
            library.headwater_moments,
            library.headwater_norms,
            library.headwater_alive,
        )
        for function in (self._moments, self._norms):
            function.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
            function.restype = None
        self._alive.argtypes = [ctypes.c_void_p, ctypes.c_int]
        self._alive.restype = None
        self._between = library.headwater_between
        self._between.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p, ctypes.c_int]
        self._between.restype = None
        library.headwater_source.restype = ctypes.c_char_p
        self.source: str = library.headwater_source().decode()
        best: int = library.headwater_best_target()
        number = best if target is None else TARGETS.index(target)
        if number > best:
            raise ValueError(f"this processor has no {target}; its best is {TARGETS[best]}")
        self.target = TARGETS[number]
        self._number = number

    def moments(self, entries: Sequence[int]) -> Tensor:
        """Additive statistics of several arrays.

        Args:
            entries: address, number of elements and dtype code of each, one after another, from :func:`entries`. The
                caller keeps the memory alive.

        Returns:
            Shape (k, 11), float64, in main memory.
        """
        given = entries if isinstance(entries, array) else array("q", entries)
        table = torch.empty((len(given) // 3, 11), dtype=torch.float64, device="cpu")
        self._moments(len(given) // 3, given.buffer_info()[0], table.data_ptr(), self._number)
        return table

    def moments_of_one(self, entries: tuple[int, int, int]) -> array[float]:
        """:meth:`moments` of one array, as 11 Python numbers."""
        given, row = array("q", entries), array("d", bytes(88))
        self._moments(1, given.buffer_info()[0], row.buffer_info()[0], self._number)
        return row

    def norms(self, entries: Sequence[int]) -> Tensor:
        """Norms and non-finite counts of several arrays.

        Args:
            entries: as for :meth:`moments`.

        Returns:
            Shape (k, 3), float64, in main memory: √Σx² over the finite elements, NaN elements, infinite elements.
        """
        given = entries if isinstance(entries, array) else array("q", entries)
        table = torch.empty((len(given) // 3, 3), dtype=torch.float64, device="cpu")
        self._norms(len(given) // 3, given.buffer_info()[0], table.data_ptr(), self._number)
        return table

    def alive(self, tensor: Tensor, threshold: float, mask: Tensor) -> bool:
        """``mask[u] |= any(|x[:, u]| > threshold)``.

        Args:
            tensor: shape (B, U, ...).
            threshold: not negative; rounded to the tensor's dtype.
            mask: shape (U,), uint8 or bool.

        Returns:
            Whether it was done: not for a tensor (or mask) that :func:`entry` does not take as it lies.
        """
        if not tensor.is_contiguous() or not mask.is_contiguous() or tensor.is_complex():
            return False
        taken = entry(tensor)
        if taken is None or not mask.is_cpu or type(mask) is not Tensor:
            return False
        samples, units = tensor.shape[:2]
        width = tensor.element_size()
        limits = (_bits(threshold, tensor.dtype), _bits(math.inf, tensor.dtype))
        space = tensor.numel() // max(1, samples * units)
        given = array("q", (taken[0], mask.data_ptr(), samples, units, space, width, *limits))
        self._alive(given.buffer_info()[0], self._number)
        return True

    def nonzero_slices(self, tensor: Tensor, dim: int) -> array[int] | None:
        """Which slices along a dimension hold an element that is not zero (NaN is not).

        Args:
            tensor: shape (R, C, ...), not empty.
            dim: 0 or 1.

        Returns:
            1 for each that does, else 0; None for a tensor that :func:`entry` does not take as it lies.
        """
        taken = entry(tensor) if tensor.is_contiguous() and not tensor.is_complex() else None
        if taken is None:
            return None
        samples, units = (1, tensor.shape[0]) if dim == 0 else tensor.shape[:2]
        mask = array("B", bytes(units))
        width = tensor.element_size()
        # Any magnitude above 0 and up to the last NaN.
        limits = (0, 2 ** (8 * width - 1) - 1)
        space = tensor.numel() // (samples * units)
        given = array("q", (taken[0], mask.buffer_info()[0], samples, units, space, width, *limits))
        self._alive(given.buffer_info()[0], self._number)
        return mask

    def between_samples(self, x: Tensor) -> tuple[float, float] | None:
        """How a second moment splits into what differs between samples and what they share.

        Args:
            x: shape (B, ...), B at least 2, not empty, every element finite and its square in the range of a double.

        Returns:
            Σ_f Σ_b (x_bf - mean_f)² and Σ_f Σ_b mean_f², with mean_f the mean over the samples of feature f; None for
            a tensor that :func:`entry` does not take as it lies.
        """
        taken = entry(x) if x.is_contiguous() else None
        if taken is None:
            return None
        address, count, code = taken
        out = array("d", bytes(16))
        self._between(address, x.shape[0], count // x.shape[0], code, out.buffer_info()[0], self._number)
        return out[0], out[1]


@cache
def _bits(value: float, dtype: torch.dtype) -> int:
    return int(torch.tensor(value, dtype=dtype, device="cpu").view(_INTEGER[dtype.itemsize]))


def entry(tensor: Tensor) -> tuple[int, int, int] | None:
    """Where a tensor's elements lie, if the kernels can read them there.

    Args:
        tensor: any.

    Returns:
        Address, number of real numbers and dtype code of a dense tensor of floating or complex numbers in main memory
        (transposed and channels-last ones are dense); None for every other.
    """
    code = _CODES.get(tensor.dtype)
    if (
        code is None
        or type(tensor) not in _PLAIN_TYPES
        or not tensor.is_cpu
        or tensor.layout is not torch.strided
        or tensor.is_nested
        or tensor.is_neg()
        or (code[1] == 2 and tensor.is_conj())
        or not (tensor.is_contiguous() or _is_dense(tensor))
    ):
        return None
    count = tensor.numel()
    try:
        address = tensor.data_ptr()
    except RuntimeError:  # a function transform's tensor has no storage: the plain path goes through the transform
        return None
    # Torch's tensor of zeros that takes no memory has the address 0.
    return (address, count * code[1], code[0]) if address or not count else None


def entries(tensors: Sequence[Tensor]) -> tuple[array[int], Sequence[int]]:
    """:func:`entry` of many tensors, one after another.

    Contiguous ones of one real dtype, which is what a step's gradients are, are asked together: one loop in C per
    question. No answer is kept, since a gradient may lie otherwise or be of another type at the next step.

    Args:
        tensors: any.

    Returns:
        Three numbers for each, zeros for those that the kernels cannot read as they lie; and which these are.
    """
    given = array("q", bytes(24 * len(tensors)))
    dtypes = set(map(_DTYPE, tensors))
    if len(dtypes) == 1 and _PLAIN_TYPES.issuperset(map(type, tensors)) and all(map(_IS_CPU, tensors)):
        dtype = dtypes.pop()
        code, width = _CODES.get(dtype, (0, 0))
        if width == 1:
            try:  # a layout that is not strided has no address, nor has a function transform's tensor
                addresses = array("q", map(Tensor.data_ptr, tensors))
                size = dtype.itemsize
                counts = array("q", [nbytes // size for nbytes in map(_NBYTES, tensors)])
                contiguous = all(map(Tensor.is_contiguous, tensors))
            except RuntimeError:
                contiguous = False
            # A single element may be torch's lazily negated one; the imaginary part that more of them would be the
            # view of is not contiguous. A tensor of zeros may take no memory.
            if contiguous and min(counts) < 2:
                contiguous = not any(t.is_neg() for t, count in zip(tensors, counts, strict=True) if count < 2)
            if contiguous and all(addresses):
                given[0::3], given[1::3], given[2::3] = addresses, counts, array("q", [code]) * len(tensors)
                return given, ()
    others: list[int] = []
    for index, tensor in enumerate(tensors):
        found = entry(tensor)
        if found is None:
            others.append(index)
        else:
            given[3 * index], given[3 * index + 1], given[3 * index + 2] = found
    return given, others


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill a stretch of memory, each once, in the order of the strides."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def source_digest(folder: Path = HERE) -> str:
    """What identifies the sources, so that a compiled file of other ones is not used.

    Args:
        folder: where the sources lie.

    Returns:
        16 hexadecimal digits; the empty string where a source is missing.
    """
    digest = hashlib.sha256()
    for name in SOURCES:
        path = folder / name
        if not path.is_file():
            return ""
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _open() -> tuple[Kernels | None, KernelStatus]:
    wish = os.environ.get("HEADWATER_KERNELS", "")
    if wish == "0":
        return None, KernelStatus(False, None, "HEADWATER_KERNELS=0 is set")
    if wish not in ("", "1", *TARGETS):
        known = ", ".join(("0", "1", *TARGETS))
        return None, KernelStatus(False, None, f"HEADWATER_KERNELS={wish} is none of {known}")
    if not COMPILED.is_file():
        return None, KernelStatus(False, None, "there was no C compiler when the package was built")
    try:
        kernels = Kernels(COMPILED, wish if wish in TARGETS else None)
    except (OSError, AttributeError, ValueError) as error:
        return None, KernelStatus(False, None, f"the compiled file cannot be used ({error})")
    digest = source_digest()
    if digest and digest != kernels.source:
        return None, KernelStatus(
            False, None, "the compiled file belongs to other sources; run `python scripts/build_kernels.py`"
        )
    return kernels, KernelStatus(True, kernels.target, "compiled when the package was built")


@cache
def _opened() -> tuple[Kernels | None, KernelStatus]:
    return _open()


def load() -> Kernels | None:
    """The compiled kernels, loaded when they are first asked for; None where the plain path is in use."""
    return _opened()[0]


def status() -> KernelStatus:
    """Which code computes statistics in main memory, and why.

    Returns:
        The status; loads the kernels if nobody has.

    Example:
        >>> status().in_use == (load() is not None)
        True
    """
    return _opened()[1]


def forget() -> None:
    """Look for the compiled file and at ``HEADWATER_KERNELS`` again when they are next needed."""
    _opened.cache_clear()
