"""Stage 2: the op is right: answers and gradients against float64 on the CPU, wherever and however it is called."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers.deformable_attention import KeyAwareDeformAttn, MSDeformAttn
from models.ops import key_aware_deform_attn, ms_deform_attn
from models.structures import Pyramid
from tools.dev.benchmark_ops import SHAPES
from tools.dev.gpu.results import Results, distance
from tools.dev.gpu.stages import ROOT, Setting

LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""By what share of its norm an answer or a gradient may differ."""
SECONDS = 45
"""That a process of the tests may take."""


@dataclass(frozen=True)
class Case:
    """Sizes of a call, and where it looks.

    Attributes:
        name: where it looks: random, border, whole pixels, outside.
        shapes: of the levels.
        N, Q, M, D, P: images, queries, heads, channels, points.
    """

    name: str
    shapes: tuple[tuple[int, int], ...]
    N: int = 2
    Q: int = 60
    M: int = 8
    D: int = 32
    P: int = 4

    def locations(self, generator: torch.Generator) -> Tensor:
        """(N, Q, M, L, P, 2), float32."""
        sizes = torch.tensor([(w, h) for h, w in self.shapes], dtype=torch.float32)[:, None]
        shape = (self.N, self.Q, self.M, len(self.shapes), self.P, 2)
        drawn = torch.rand(shape, generator=generator)
        if self.name == "border":
            corners = torch.tensor([0.0, 1.0, -1e-7, 1 + 1e-7]).repeat(8)
            inner = torch.tensor([0.5, -0.5, 0.499, -0.499])  # half a pixel from the border: where neighbours end
            chosen = corners[(drawn * 32).long()]
            return torch.where(drawn < 0.5, chosen, chosen.round() + inner[(drawn * 997).long() % 4] / sizes)
        if self.name == "whole pixels":
            return ((drawn * (sizes + 2)).floor() - 0.5) / sizes
        if self.name == "outside":
            return (drawn - 0.5) * torch.tensor([3.0, 1e3, 1e9, 1e30])[(drawn * 997).long() % 4]
        return drawn * 1.4 - 0.2

    def inputs(self) -> dict[str, Tensor]:
        """Query, key, value, locations, weights, and the gradient of the answer; float32 on the CPU."""
        generator = torch.Generator().manual_seed(0)
        tokens = sum(h * w for h, w in self.shapes)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        weights = torch.rand(self.N, self.Q, self.M, len(self.shapes), self.P, generator=generator)
        return {
            "query": normal(self.N, self.Q, self.M, self.D),
            "key": normal(self.N, tokens, self.M, self.D),
            "value": normal(self.N, tokens, self.M, self.D),
            "locations": self.locations(generator),
            "weights": weights / weights.sum((-2, -1), keepdim=True),
            "grad": normal(self.N, self.Q, self.M * self.D),
        }


SMALL = ((25, 34), (13, 17), (7, 9), (4, 5))
CASES = (
    *(Case(name, SMALL) for name in ("random", "border", "whole pixels", "outside")),
    Case("random, one channel group", SMALL, D=4, M=1, P=1),
    Case("random, wide heads", SMALL, D=128, M=2),
    Case("random, odd widths", ((5, 7),), D=12, M=3, P=5, N=3),
    Case("random, many samples", SMALL, P=32, Q=7),
    Case("random, levels of one pixel", ((1, 1), (1, 3), (2, 1)), Q=9),
    Case("random, one query", SMALL, Q=1, N=1),
    Case("random, no query", SMALL, Q=0),
    Case("random, as an encoder", SHAPES, N=1, Q=sum(h * w for h, w in SHAPES)),
)


def answered(function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The answer and the gradients by all inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    answer = function(*leaves)
    return [answer.detach(), *torch.autograd.grad(answer, leaves, grad.to(answer.dtype))]


ATTENTIONS = {
    "plain": (ms_deform_attn, ("value", "shapes", "locations", "weights")),
    "key-aware": (key_aware_deform_attn, ("query", "value", "value", "shapes", "locations")),
    "key-aware, other keys": (key_aware_deform_attn, ("query", "key", "value", "shapes", "locations")),
}
"""{attention: (function, its arguments by name)}."""


def attend(name: str, case: Case, inputs: dict[str, Tensor], backend: str) -> list[Tensor]:
    """The answer of an attention and the gradients by all its inputs, on the device and in the types of the inputs."""
    function, arguments = ATTENTIONS[name]
    taken = sorted(set(arguments) - {"shapes"})

    def called(*leaves: Tensor) -> Tensor:
        known = {"shapes": case.shapes, **dict(zip(taken, leaves, strict=True))}
        return function(*(known[argument] for argument in arguments), backend)

    return answered(called, [inputs[argument] for argument in taken], inputs["grad"])


def stored(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs as a model has them under autocast: features in a half type, geometry in float32."""
    return {name: x.to(dtype) if name in ("query", "key", "value", "grad") else x for name, x in inputs.items()}


def poison(device: str, size: int):
    """Fills memory that the next tensors will get with NaN, so that numbers which nobody writes are seen."""
    for count in (size, size // 2, size // 4):
        torch.full((count,), float("nan"), device=device)


def compare(setting: Setting, results: Results, case: Case):
    """One case: every attention in every type."""
    drawn = case.inputs()
    for dtype, limit in LIMITS.items():
        given, worst = stored(drawn, dtype), {}
        exactly = {name: x.double() for name, x in given.items()}
        there = {name: x.to(setting.device) for name, x in given.items()}
        for name in ATTENTIONS:
            with results.attempt(f"{case.name}, {dtype}, {name}"):
                exact = attend(name, case, exactly, "auto")
                poison(setting.device, 2 * max(x.numel() for x in given.values()))
                ours = attend(name, case, there, "auto" if setting.dry_run else "cuda")
                worst[name] = max(map(distance, ours, exact))
        results.row(
            "largest distance from float64, of the answer and all gradients", case=case.name, dtype=dtype, **worst
        )
        good = len(worst) == len(ATTENTIONS) and all(found <= limit for found in worst.values())
        results.check(f"{case.name}, {dtype}", good, f"at most {limit:g} is allowed")


class Attention(nn.Module):
    """Both attentions, one after the other, for torch.compile."""

    def forward(self, query: Tensor, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        plain = ms_deform_attn(value * 2, SMALL, locations, weights)
        return plain + key_aware_deform_attn(query, value, value, SMALL, locations)


def other_ways(setting: Setting) -> Iterator[tuple[str, Callable[[], float], float]]:
    """(how the op is called, how far the answer and its gradients then are from a plain call, how far they may be)."""
    given = {name: x.to(setting.device) for name, x in Case("random", SMALL).inputs().items()}
    inputs = [given[name] for name in ("query", "value", "locations", "weights")]
    plain = answered(Attention(), inputs, given["grad"])

    def compiled() -> float:
        backend = "aot_eager" if setting.dry_run else "inductor"
        function = torch.compile(Attention(), fullgraph=True, backend=backend)
        return max(map(distance, answered(function, inputs, given["grad"]), plain))

    def on_a_stream() -> float:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10**7)  # what does not wait for this stream reads numbers that are not there yet
            fresh = [x.clone() for x in inputs]
            found = answered(Attention(), fresh, given["grad"])
        stream.synchronize()
        return max(map(distance, found, plain))

    def on_the_last_card() -> float:
        device = f"cuda:{torch.cuda.device_count() - 1}"
        found = answered(Attention(), [x.to(device) for x in inputs], given["grad"].to(device))
        return max(map(distance, found, plain))

    def in_order() -> float:
        torch.use_deterministic_algorithms(True)
        try:
            first, second = (answered(Attention(), inputs, given["grad"]) for _ in range(2))
        finally:
            torch.use_deterministic_algorithms(False)
        same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        return max(map(distance, first, plain)) if same else float("inf")

    yield "compiled", compiled, 1e-5
    yield "deterministic: twice the same bits", in_order, 1e-5
    if setting.device == "cuda":
        yield "on a second stream", on_a_stream, 1e-5
        if torch.cuda.device_count() > 1:
            yield "on the last card", on_the_last_card, 1e-5
    for layer in (MSDeformAttn, KeyAwareDeformAttn):
        yield f"{layer.__name__} under autocast to bfloat16", lambda layer=layer: under_autocast(setting, layer), 2e-2


def under_autocast(setting: Setting, layer: type[nn.Module]) -> float:
    """How far a layer under autocast, and its gradients, are from the same in float64 on the CPU."""
    torch.manual_seed(0)
    exact = layer(64, 4, len(SMALL)).double()
    tokens = sum(h * w for h, w in SMALL)
    # The gradient by locations jumps from pixel to pixel, so offsets stay as they begin.
    query, memory = torch.randn(2, 50, 64, dtype=torch.float64), torch.randn(2, tokens, 64, dtype=torch.float64)
    reference = torch.rand(2, 50, len(SMALL), 2, dtype=torch.float64)
    grad = torch.randn(2, 50, 64, dtype=torch.float64)

    def asked(layer: nn.Module, device: str, dtype: torch.dtype) -> list[Tensor]:
        layer, (q, m, r, g) = layer.to(device, dtype), (x.to(device, dtype) for x in (query, memory, reference, grad))

        def function(q: Tensor, m: Tensor) -> Tensor:
            padding = torch.zeros(m.shape[:2], dtype=torch.bool, device=device)
            return layer(q, r, Pyramid(m, m, padding, SMALL, (SMALL, SMALL)))[0]

        return answered(function, [q, m], g)

    wanted = asked(exact, "cpu", torch.float64)
    with torch.autocast(setting.device, torch.bfloat16):
        found = asked(exact, setting.device, torch.float32)
    return max(map(distance, found, wanted))


def from_outside(results: Results):
    """What the tests hold against a GPU, in processes of their own."""
    marked = [
        path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    commands = {
        "next to whole pixels, against exact arithmetic": ("tests.harness.whole_pixels", "--device", "cuda"),
        "pytest -m gpu": ("pytest", "-p", "no:cacheprovider", "-m", "gpu", *map(str, marked)),
    }
    for what, command in commands.items():
        with results.attempt(what):
            words = [sys.executable, "-m", *command]
            done = subprocess.run(
                words, cwd=ROOT, capture_output=True, timeout=SECONDS, check=False, encoding="utf-8", errors="replace"
            )
            print(done.stdout, done.stderr)
            lines = done.stdout.strip().splitlines()
            said = lines[-1:] if command[0] == "pytest" else lines
            skipped = any("skipped" in line for line in said)  # who was skipped has shown nothing
            results.check(what, done.returncode == 0 and bool(said) and not skipped, "; ".join(said))


def run(setting: Setting, results: Results):
    """The likely faults first, in case one of them spoils the device for what follows."""
    for case in CASES[:3] if setting.dry_run else CASES:
        compare(setting, results, case)
    for name, measure, limit in other_ways(setting):
        with results.attempt(name):
            found = measure()
            results.check(name, found <= limit, f"{found:.1e}, at most {limit:g} is allowed")
    if setting.device == "cuda":
        if torch.cuda.device_count() < 2:
            results.note("One card is here: the op was not tried on another than the first.")
        from_outside(results)
