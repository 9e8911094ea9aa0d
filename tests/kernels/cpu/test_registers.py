"""Sums that are made in a loop stay in registers: one that waits in memory costs a product a third of its speed."""

import re
import subprocess

import pytest

from tests.kernels.cpu.conftest import IS_X86
from trisparse.kernels.cpu import build

pytestmark = pytest.mark.skipif(not IS_X86, reason="reads machine code of x86")


def innermost_loops(assembly):
    """Function and instructions of each loop without another one in it."""
    name, lines, labels = "", [], {}
    for line in assembly.splitlines():
        if label := re.match(r"(\.L\d+):", line):
            labels[label[1]] = len(lines)
        elif function := re.match(r"(\w\S*):", line):
            name, lines, labels = function[1], [], {}
        elif line.startswith("\t") and not line.startswith("\t."):
            lines.append(line.strip())
            jump = re.match(r"j\w+\s+(\.L\d+)$", lines[-1])
            if jump and jump[1] in labels:
                yield name, lines[labels[jump[1]] :]
                labels = {}  # a jump further back has this loop in it


def assembly_of(source):
    command = [*build.FLAGS, "-march=haswell", "-S", "-o", "-", str(build.SOURCES / f"{source}.cpp")]
    return subprocess.run(["c++", *command], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(("source", "struct"), [("spmm", "Vectors"), ("spmm_t", "Rows"), ("sddmm", "Sums")])
def test_no_sum_waits_in_memory_where_there_are_sixteen_registers(source, struct):
    loops = innermost_loops(assembly_of(source))
    loops = [(name, body) for name, body in loops if re.search(rf"\d{struct}I.*3add", name)]
    loops = [(name, body) for name, body in loops if sum("vfm" in line for line in body) > 1]
    assert len(loops) > 2
    for name, body in loops:
        on_stack = [line for line in body if re.search(r"\(%r[sb]p\)", line) and re.search(r"%[xyz]mm", line)]
        assert not on_stack, f"{name}: {on_stack}"


def test_products_with_vectors_for_few_tokens_clear_no_sums_in_memory():
    # for a group of few vectors that would take as long as multiplying
    assert "rep stos" not in assembly_of("spmm")
