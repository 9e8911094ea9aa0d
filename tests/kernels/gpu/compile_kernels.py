"""Compile every kernel ahead of time for one target and print what the machine code shows, as JSON.

    python tests/kernels/gpu/compile_kernels.py sm_90
    python tests/kernels/gpu/compile_kernels.py --record    # write the record of this Triton anew, for all targets

Runs in a process of its own: Triton must not be in interpreter mode. `instructions` counts the static
instructions of a program over the weights (or units) it takes; where a kernel loops, over those of one round.
"""

import collections
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trisparse.kernels.gpu import (
    apply_masks,
    block_spmm,
    cost_groups,
    epilogue,
    mask_24,
    masked_adamw,
    mm_24,
    mm_24_sparse,
    nm_mask,
    nm_mask_2d,
    pack_24,
    score_units,
    sddmm,
    select_units,
    spmm_t,
    thin_groups,
    unpack_24,
    vector_spmm,
)
from trisparse.kernels.layouts_24 import QUADS
from trisparse.kernels.plan import GROUPS_CHUNK, SELECTION_CHUNK
from trisparse.kernels.tables import LINES, STRIDED, TILES, _tile

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
STEP = ("W", "G", "CRITERION", "REDUCE", "EMA")
NVIDIAS = "multiply_sparse"  # kernels in NVIDIA's own instructions
RECORD = Path(__file__).with_name("instructions.json")  # of the newest Triton; others have their version in the name
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
POINTERS = dict.fromkeys(
    ("pointers", "shapes", "lengths", "sizes", "low", "high", "targets", "limits", "total"), "*i64"
)
SIZES = (
    "numel",
    "rows",
    "cols",
    "padded_rows",
    "padded_cols",
    "stride",
    "inner",
    "outer",
)  # multiples of 16 on fast paths
SCALARS = {
    "padded_rows": "i32",
    "padded_cols": "i32",
    "tokens": "i32",
    "stride": "i32",
    "inner": "i32",
    "outer": "i32",
    "shares": "i32",
    "steps": "i32",
    "decay": "fp32",
    "unscale": "fp32",
    "all_rates": "*fp64",
    "L": "i32",
    "numel": "i32",
    "rows": "i32",
    "cols": "i32",
    "seen": "*i8",
}


def variants():
    """Name, kernel, constants, other argument types, weights a program takes, threads, must it read 16 bytes at once.

    Threads are None for kernels with as many warps on every target.
    """
    for dtype in (tl.bfloat16, tl.float32):

        def threads(layout, itemsize=dtype.primitive_bitwidth // 8):
            return masked_adamw.threads(layout, itemsize)

        for n, m, transposed in [
            (4, 1, False),
            (8, 1, False),
            (1, 1, False),
            (1, 4, False),
            (32, 32, False),
            (1, 4, True),
        ]:
            down, across = _tile(n, m)
            tile = {"TRANSPOSED": transposed, "N": n, "M": m, "DOWN": down, "ACROSS": across}
            name, size = f"{dtype} {n}x{m}{' transposed' if transposed else ''}", down * across * n * m
            what = {"W": dtype, "G": dtype, "CRITERION": 2, "REDUCE": 0, "EMA": True, "FIND_BAD": False, "OPERANDS": 3}
            yield f"score_tiles {name}", score_units.score_tiles, tile | what, {}, size, 256, True
            bits = {"BITS": {16: tl.int16, 32: tl.int32}[dtype.primitive_bitwidth]}
            yield f"mask_tiles {name}", apply_masks.mask_tiles, tile | bits, {}, size, 256, True
            fused = {"SCORED": True, "MASKED": True} | {key: what[key] for key in STEP}
            if not transposed:
                step = tile | fused, {}, size, threads(TILES), True
                yield f"step_tiles {name}", masked_adamw.step_tiles, *step
            if (n, m, transposed) == (4, 1, False):
                guard = what | {"CRITERION": 1, "REDUCE": 2, "EMA": False, "FIND_BAD": True}
                yield f"score_tiles {name} guard", score_units.score_tiles, tile | guard, {}, size, 256, True
        for kind, lines, lines_t, units, width in [
            ("rows", True, False, 8, 256), ("columns", False, True, 128, 16), ("strided 4x1", False, False, 512, 4),
        ]:  # fmt: skip
            line = {"IS_LINES": lines, "IS_LINES_T": lines_t, "UNITS": units, "WIDTH": width}
            name = f"{dtype} {kind}"
            yield f"score_lines {name}", score_units.score_lines, line | what, {}, units * width, 256, lines or lines_t
            step_threads = threads(LINES if lines or lines_t else STRIDED)
            step = line | fused, {}, units * width, step_threads, lines or lines_t
            yield f"step_lines {name}", masked_adamw.step_lines, *step
            yield f"mask_lines {name}", apply_masks.mask_lines, line | bits, {}, units * width, 256, False
        for n, m in [(2, 4), (4, 8), (16, 32), (3, 5)]:
            width = triton.next_power_of_2(m)
            groups = nm_mask.TILE // width
            constants = {"N": n, "M": m, "WIDTH": width, "GROUPS": groups, "MAGNITUDE": True}
            types = {"values_ptr": f"*{dtype}", "mask_ptr": "*i8"}
            yield f"mask_groups {dtype} {n}:{m}", nm_mask.mask_groups, constants, types, groups * m, 128, width == m
        constants = {"DOWN": nm_mask_2d.DOWN, "ACROSS": nm_mask_2d.ACROSS}
        size, types = nm_mask_2d.DOWN * nm_mask_2d.ACROSS * 16, {"weight_ptr": f"*{dtype}"}
        yield (
            f"mask_tiles_24 {dtype}",
            nm_mask_2d.mask_tiles_24,
            constants,
            types,
            size,
            nm_mask_2d.THREADS,
            True,
        )
    quads = {"N": 2, "CHUNK": GROUPS_CHUNK // 4, "IS_APART": False}
    yield "rank_quads 2:4", cost_groups.rank_quads, quads, {}, GROUPS_CHUNK, 128, True
    for n, m in [(4, 8), (16, 32)]:
        width = triton.next_power_of_2(m)
        groups = {"M": m, "WIDTH": width, "CHUNK": GROUPS_CHUNK // width}
        yield f"rank_groups {n}:{m}", cost_groups.rank_groups, groups | {"N": n}, {}, GROUPS_CHUNK, 128, False
    yield (
        "thin_kept 2:4",
        thin_groups.thin_kept,
        {"M": 4, "WIDTH": 4, "CHUNK": GROUPS_CHUNK // 4},
        {},
        GROUPS_CHUNK,
        128,
        False,
    )
    fast = {"ALIGNED": True, "BLOCK": SELECTION_CHUNK}
    for shift in (24, 16):
        yield (
            f"count_digits {shift}",
            select_units.count_digits,
            fast | {"SHIFT": shift},
            {},
            SELECTION_CHUNK,
            256,
            True,
        )
    yield "write_units", select_units.write_units, fast, {}, SELECTION_CHUNK, select_units.WRITE_THREADS, True
    yield "count_ties", select_units.count_ties, {"BLOCK": SELECTION_CHUNK}, {}, SELECTION_CHUNK, 256, False
    yield "pick_common", select_units.pick_common, {}, {}, 16 * 256, 256, False
    yield "pick_own", select_units.pick_own, {}, {}, 256, 128, False
    yield "set_limits", select_units.set_limits, {"LOCAL": False, "BLOCK": 128}, {}, 128, 128, False
    yield "share_out", select_units.share_out, {"BLOCK": 128}, {}, 128, 128, False
    yield from variants_24()
    yield from variants_blocks()


def variants_24():
    """The kernels of packed 2:4 matrices. Packing has 4 warps on any target; on AMD these read 8 bytes at once."""
    size = 16 * pack_24.DOWN * pack_24.ACROSS
    for select, both, values_only, layout, dtype in [
        ("magnitude", False, False, "bitmask", tl.bfloat16),
        ("magnitude", False, False, "cslt_sm90", tl.bfloat16),
        ("magnitude", True, False, "cutlass_sm80", tl.bfloat16),
        ("magnitude", True, False, "cslt_sm80", tl.bfloat16),
        ("magnitude", True, False, "cslt_sm90", tl.bfloat16),
        ("magnitude", True, False, "cslt_sm90", tl.float32),
        ("scores", False, False, "cslt_sm90", tl.float32),
        ("mask", True, False, "cslt_sm90", tl.bfloat16),
        ("patterns", False, True, "cslt_sm90", tl.bfloat16),
        ("patterns", True, True, "cslt_sm90", tl.bfloat16),
        ("patterns", True, True, "cslt_sm90", tl.float32),
    ]:
        weight = "*i32" if dtype == tl.bfloat16 else f"*{dtype}"  # two values at once
        types = {"weight_ptr": weight, "chooser_ptr": "*i8" if select == "mask" else f"*{dtype}"}
        types |= {"patterns_ptr": "*i16", "packed_ptr": "*i32", "packed_t_ptr": "*i32"}
        constants = {"SELECT": select, "BOTH": both, "VALUES_ONLY": values_only, "LAYOUT": layout}
        constants |= {"DTYPE": tl.bfloat16, "DOWN": pack_24.DOWN, "ACROSS": pack_24.ACROSS}
        name = f"pack_tiles {dtype} {select}{' both ways' if both else ''}{' values' if values_only else ''} {layout}"
        yield name, pack_24.pack_tiles, constants, types, size, None, True
    pointers = {"x_ptr": "*bf16", "packed_ptr": "*bf16", "bias_ptr": "*bf16", "dense_ptr": "*bf16"}
    for layout in QUADS:
        constants = {"LAYOUT": layout, "ROWS": unpack_24.ROWS, "QUADS": unpack_24.QUADS}
        size = unpack_24.ROWS * unpack_24.QUADS * 4
        yield f"unpack_rows {layout}", unpack_24.unpack_rows, constants, pointers, size, unpack_24.THREADS, True
        for tokens in (16, 64):
            shape = {"LAYOUT": layout, "TOKENS": tokens, "ROWS": mm_24.ROWS, "COLS": mm_24.COLS}
            constants, types = shape | {"IS_SHARE": True, "HAS_BIAS": False}, pointers | {"out_ptr": "*fp32"}
            name, size = f"multiply_few {tokens} {layout}", mm_24.ROWS * mm_24.COLS
            yield name, mm_24.multiply_few, constants, types, size, mm_24.THREADS, True
        for tokens in (8, 16):
            config = mm_24_sparse.config_for(tokens, 4096, 4096)
            constants = {"LAYOUT": layout, "TILES": tokens // 8, "IS_ARRANGED": config.is_arranged, "IS_SHARE": False}
            constants |= {key.upper(): getattr(config, key) for key in ("high", "steps", "down", "across")}
            types, warps = pointers | {"out_ptr": "*bf16"}, config.down * config.across
            name, size = f"multiply_sparse {tokens} {layout}", config.high * config.steps * warps * 16 * 64
            yield name, mm_24_sparse.multiply_sparse, constants | {"HAS_BIAS": True}, types, size, warps * 32, True
    yield "arrange", mm_24_sparse.arrange, {}, {"x_ptr": "*bf16", "out_ptr": "*bf16"}, 512, 64, False
    constants, types = {"DOWN": mask_24.DOWN, "ACROSS": mask_24.ACROSS}, {"patterns_ptr": "*i16"}
    yield "write_mask", mask_24.write_mask, constants, types, 16 * 256, mask_24.THREADS, False


def variants_blocks():
    """Products with column vectors and blocks, and their gradients, in the sizes that the launchers choose."""
    data = ("x_ptr", "x_t_ptr", "grad_ptr", "grad_t_ptr", "values_ptr", "bias_ptr", "out_ptr")
    types = dict.fromkeys(data, "*bf16") | {"columns_ptr": "*i16", "shares_ptr": "*fp32"}
    ends = {"HAS_BIAS": True, "ACTIVATION": "gelu"}
    for n, run in [(4, 4), (8, 8), (16, 16), (16, 4), (32, 32)]:
        stages = vector_spmm.stages(vector_spmm.TOKENS + n, vector_spmm.STEP, 2)
        name, vectors = f"{n}x1{'' if run == n else f' in runs of {run}'}", {"N": n, "RUN": run}
        product = ends | {"STEP": vector_spmm.STEP, "num_stages": stages}
        for module, kernel, size, sizes in [
            (vector_spmm, "multiply_vectors", n * vector_spmm.STEP, product),
            (sddmm, "gradient_of_vectors", n * sddmm.SLOTS, {"SLOTS": sddmm.SLOTS}),
            (spmm_t, "multiply_vectors_t", min(n, 8) * spmm_t.COLS, {"COLS": spmm_t.COLS}),
        ]:
            constants = vectors | sizes | {"TOKENS": module.TOKENS}
            yield f"{kernel} {name}", getattr(module, kernel), constants, types, size, module.THREADS, True
        for tokens in (1, 8):
            step = vector_spmm.few_step(n, tokens)
            constants = vectors | {"TOKENS": tokens, "STEP": step, "IS_SHARE": tokens > 1, "HAS_BIAS": tokens == 1}
            constants |= {"ACTIVATION": "none" if tokens > 1 else "gelu"}
            result = {"out_ptr": "*fp32" if tokens > 1 else "*bf16"}
            kernel = vector_spmm.multiply_vectors_few, constants, types | result
            yield f"multiply_vectors_few {tokens} {name}", *kernel, n * step, vector_spmm.FEW_THREADS, True
    for n in (16, 32, 64, 128):
        tokens, sides = block_spmm.TOKENS, {"N": n, "M": n}
        stages = block_spmm.stages(tokens + n, block_spmm.DEPTH, 2)
        for transposed in (False, True):
            constants = {"TOKENS": tokens, "DEPTH": block_spmm.DEPTH, "num_stages": stages}
            kernel = block_spmm.multiply_blocks, sides | ends | constants | {"TRANSPOSED": transposed}
            places, threads = {"places_ptr": "*i32" if transposed else "*i16"}, block_spmm.threads(tokens, n)
            name = f"multiply_blocks {n}{' transposed' if transposed else ''}"
            yield name, *kernel, types | places, n * block_spmm.DEPTH, threads, True
        constants = sides | {"TOKENS": sddmm.TOKENS, "num_stages": sddmm.stages(2 * n, sddmm.TOKENS, 2)}
        kernel = sddmm.gradient_of_blocks, constants, types
        yield f"gradient_of_blocks {n}", *kernel, n * n, 256 if n > 64 else sddmm.THREADS, True
    constants = ends | {"ROWS": vector_spmm.ROWS}
    yield "add_shares", epilogue.add_shares, constants, types, vector_spmm.ROWS, 128, False


def compile_kernel(kernel, constants, types, threads, target):
    signature, values, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[(i,)] = "constexpr", constants[name]
            continue
        signature[name] = types.get(name) or POINTERS.get(name) or SCALARS.get(name) or "*i32"
        if signature[name].startswith("*") or name in SIZES:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return triton.compile(
        ASTSource(kernel, signature, values, attributes),
        target=target,
        options={"num_warps": threads // target.warp_size} | {k: v for k, v in constants.items() if k == "num_stages"},
    )


def read_nvidia(compiled):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        code, usage = (
            subprocess.run([TOOLS / "cuobjdump", flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("--dump-sass", "--dump-resource-usage")
        )
    opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", code, re.M)
    count = collections.Counter(op for op in opcodes if op != "NOP")
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage).groups())
    return {
        "registers": registers,
        "local": stack + local + sum(n for op, n in count.items() if op.startswith(("LDL", "STL"))),
        "wide": sum(n for op, n in count.items() if op.startswith("LDG") and ".128" in op),
        "wide_stores": sum(n for op, n in count.items() if op.startswith("STG") and ".128" in op),
        "total": sum(count.values()),
    }


def read_amd(compiled):
    code = compiled.asm["amdgcn"]
    opcodes = re.findall(r"^\t([a-z][a-z0-9_]+)\b", code, re.M)

    def field(name):
        return int(re.search(rf"\.{name}:\s+(\d+)", code)[1])

    return {
        "registers": field("vgpr_count"),
        "local": field("vgpr_spill_count") + field("sgpr_spill_count") + field("private_segment_fixed_size"),
        "wide": sum(op.startswith(("global_load", "flat_load", "buffer_load")) and op.endswith("x4") for op in opcodes),
        "wide_stores": sum(op.startswith(("global_store", "flat_store")) and op.endswith("x4") for op in opcodes),
        "total": sum(op != "s_nop" for op in opcodes),
    }


def inspect(arch):
    target = TARGETS[arch]
    found = {}
    for name, kernel, constants, types, weights, threads, fast in variants():
        if target.backend == "hip" and name.startswith(NVIDIAS):
            continue
        fast = fast and not (threads is None and target.backend == "hip")
        threads = threads or pack_24.WARPS * target.warp_size
        compiled = compile_kernel(kernel, constants, types, threads, target)
        row = read_amd(compiled) if target.backend == "hip" else read_nvidia(compiled)
        row["instructions"] = round(row.pop("total") * threads / weights, 2)
        found[name] = row | {"fast": fast}
    return found


def main():
    if sys.argv[1] != "--record":
        print(json.dumps(inspect(sys.argv[1])))
        return
    rows = {arch: {k: v["instructions"] for k, v in inspect(arch).items()} for arch in TARGETS}
    newest = json.loads(RECORD.read_text())["triton"]
    is_older = [int(part) for part in triton.__version__.split(".")] < [int(part) for part in newest.split(".")]
    path = RECORD.with_name(f"instructions_triton_{triton.__version__}.json") if is_older else RECORD
    path.write_text(json.dumps({"triton": triton.__version__, "instructions": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
