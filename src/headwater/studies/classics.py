"""The five published notebooks that people learn this subject from: networks, data, losses and printed figures."""

from __future__ import annotations

import difflib
from dataclasses import replace

from headwater.errors import StudyError
from headwater.studies.data import Data
from headwater.studies.network import Network
from headwater.studies.study import Question, ShortcutGrid, Study, Variant

__all__ = ["CLASSICS", "study"]

_WHY = Question(key="why", text="What is wrong with these networks, and why?")

DEEP_SIGMOID = Study(
    name="deep-sigmoid",
    title="Gradients vanish in a deep sigmoid network",
    question="How much of the gradient reaches the first of 20 sigmoid layers?",
    source="a published notebook; one unseeded run, printed with 10 decimals",
    variants=(
        Variant(
            name="sigmoid",
            title="20 sigmoid layers",
            network=Network(inputs=100, width=100, hidden=20, outputs=1, activation="sigmoid"),
            data=Data(samples=1, targets="one"),
            # the first ten layers were printed as 0.0000000000
            published=(
                *[0.0] * 10,
                2e-10, 1.2e-9, 7.4e-9, 6.17e-8, 4.269e-7, 2.9049e-6, 2.05589e-5, 1.422858e-4, 1.1019657e-3,
                7.9036895e-3,
            ),
            published_decimals=10,
        ),
    ),
    loss="mse",
    statistic="mean_abs",
    printed="hidden_weights",
    questions=(
        Question(key="why", text="What is wrong with this network, and why?"),
        Question(key="rate", text="How fast does the gradient vanish, and how sure is that?"),
        Question(key="cause", text="How much of it comes from the sigmoid's slope and how much from the weights?"),
        Question(key="hidden_by_format", text="Are the gradients that print as 0.0000000000 zero?"),
        Question(key="underflow", text="At what depth would they really become zero?"),
    ),
    extras=("underflow",),
    notes=(
        "The output layer's gradient is not printed; it is in the full profile.",
        "A gradient below the smallest normal number survives as a subnormal one, with ever fewer digits, unless the "
        "machine flushes those to zero. x86 processors with AVX512-BF16 do so in products of bf16 matrices, whatever "
        "the floating-point mode (VDPBF16PS in Intel's manual); there bf16 ends with its smallest normal number. The "
        "table tries this machine and says which of the two it is.",
    ),
)  # fmt: skip

_SHORTCUT = Network(
    inputs=3, width=3, hidden=4, outputs=1, activation="gelu", activation_on_output=True, initialization="default"
)
SHORTCUT = Study(
    name="shortcut",
    title="A residual connection lets the gradient through",
    question="What does x + layer(x) do to the gradient of the first layer?",
    source="a published notebook; seed 123, the network without the shortcut is built first, then the one with it",
    variants=(
        Variant(
            name="without", title="without shortcut", network=_SHORTCUT,
            data=Data(samples=1, inputs="linspace", targets="zero"),
            published=(
                0.00020174124801997095, 0.00012011772923870012, 0.0007152438047342002, 0.0013988513965159655,
                0.005049603525549173,
            ),
        ),
        Variant(
            name="with", title="with shortcut", network=replace(_SHORTCUT, shortcut="all"),
            data=Data(samples=1, inputs="linspace", targets="zero"),
            published=(
                0.6178960800170898, 0.15985536575317383, 0.3972354233264923, 0.44717708230018616, 1.3972887992858887,
            ),
            note="The shortcut also goes around the last layer, from 3 units to 1: its output has 3 elements.",
        ),
    ),
    loss="mse",
    statistic="mean_abs",
    printed="weights",
    published_seed=123,
    questions=(
        _WHY,
        Question(key="shortcut_gain", text="How much does the shortcut gain, over many seeds rather than one?"),
        Question(key="shortcut_depth", text="Does it still help at useful widths and depths?"),
        Question(key="shortcut_scale", text="Does a shortcut need a scale?"),
    ),
    grid=ShortcutGrid(),
    extras=("shortcut_gain",),
)  # fmt: skip

_FOUR = Network(inputs=64, width=64, hidden=4)
ACTIVATION_AND_INIT = Study(
    name="activation-and-init",
    title="Vanishing gradients: sigmoid, tiny weights, ReLU (勾配消失)",
    question="Is it the activation or the initialisation that loses the gradient?",
    source="a published notebook, in Japanese; three unseeded runs",
    variants=(
        Variant(
            name="sigmoid", title="(a) sigmoid, default initialisation", network=replace(_FOUR, activation="sigmoid"),
            data=Data(), published=(
                0.0004986495478078723, 0.0019251107005402446, 0.01376337744295597, 0.11762049794197083,
            ),
        ),
        Variant(
            name="tiny-linear", title="(b) no activation, weights N(0, 0.01²)",
            network=replace(_FOUR, activation="identity", initialization="normal:0.01"),
            data=Data(), published=(
                0.0003132292767986655, 0.0003741825057659298, 0.0036067450419068336, 0.05968386307358742,
            ),
        ),
        Variant(
            name="relu", title="(c) ReLU, default initialisation", network=replace(_FOUR, activation="relu"),
            data=Data(), published=(
                0.02707577496767044, 0.015823712572455406, 0.0194535069167614, 0.029730459675192833,
            ),
        ),
    ),
    loss="summed_output",
    statistic="mean_abs",
    printed="weights",
    questions=(
        _WHY,
        Question(key="weights_alone", text="Can weights alone make a gradient vanish, without any activation?"),
        Question(key="cancellation", text="Do flat weight gradients mean that the gradient gets through?"),
    ),
)  # fmt: skip

_RAW = Network(
    inputs=4, width=4, hidden=9, outputs=1, activation_on_input=True, initialization="normal:1", bias=False, raw=True
)
_INTEGERS = Data(samples=100, inputs="integers", targets="integers", target_shape="flat")
RAW_WEIGHTS = Study(
    name="raw-weights",
    title="Do gradients explode or vanish when weights are N(0, 1)?",
    question="What do N(0, 1) matrices do to gradients under sigmoid, ReLU and tanh?",
    source="a published notebook; its example of 10 matrices of width 4, unseeded, printed matrix by matrix",
    variants=tuple(
        Variant(
            name=f"{name}-standardized" if standardize else name,
            title=f"{title}, {'standardised features' if standardize else 'integer features'}",
            network=replace(_RAW, activation=name),
            data=replace(_INTEGERS, standardize=standardize),
        )
        for standardize in (False, True)
        for name, title in (("sigmoid", "sigmoid"), ("relu", "ReLU"), ("tanh", "tanh"))
    ),
    loss="summed_squared_error",
    statistic="mean_abs",
    printed="weights",
    questions=(
        _WHY,
        Question(key="explode_or_vanish", text="Do the gradients explode or vanish?"),
        Question(key="why_tanh", text="Why does tanh not vanish, although its slope is at most 1?"),
        Question(key="zero_explained", text="What makes an element of a weight gradient exactly zero?"),
    ),
    extras=("observations", "matrices"),
    notes=(
        "The activation is applied to the sample itself first, then after every matrix but the last.",
        "A matrix is (in, out) here: a column of ∂L/∂W belongs to the unit that it feeds, a row to the unit that "
        "feeds it.",
    ),
)

_FIVE = Network(inputs=10, width=10, hidden=4, outputs=1, activation_on_output=True)
_NORMAL = Data(samples=100, inputs="normal", targets="normal")
INIT_STRATEGIES = Study(
    name="init-strategies",
    title="L2 norms of gradients: sigmoid against LeakyReLU, He against Xavier",
    question="Which initialisation suits which activation?",
    source="a published exercise; four unseeded runs",
    variants=(
        Variant(
            name="sigmoid-default", title="sigmoid, default", network=_FIVE, data=_NORMAL,
            published=(
                1.8628388716024347e-05, 3.066662611672655e-05, 0.0005138158448971808, 0.00033092324156314135,
                0.003808162175118923, 0.002379715209826827, 0.04350128769874573, 0.02624613605439663,
                0.3425194323062897, 0.20319567620754242,
            ),
        ),
        Variant(
            name="leaky-default", title="LeakyReLU, default", network=replace(_FIVE, activation="leaky_relu"),
            data=_NORMAL,
            published=(
                0.012357436120510101, 0.007089552469551563, 0.013694400899112225, 0.010775835253298283,
                0.029977064579725266, 0.05505665764212608, 0.06813295185565948, 0.16980555653572083,
                0.1350313276052475, 0.4393619894981384,
            ),
        ),
        Variant(
            name="sigmoid-he", title="sigmoid, He normal (gain 1)",
            network=replace(_FIVE, initialization="kaiming_normal_gain_1"), data=_NORMAL,
            published=(
                0.0005468870513141155, 0.0010482256766408682, 0.007102056406438351, 0.004478410352021456,
                0.024837154895067215, 0.014628857374191284, 0.08468004316091537, 0.056439392268657684,
                0.3818344175815582, 0.24892641603946686,
            ),
        ),
        Variant(
            name="leaky-xavier", title="LeakyReLU, Xavier normal",
            network=replace(_FIVE, activation="leaky_relu", initialization="xavier_normal"), data=_NORMAL,
            published=(
                0.01369679719209671, 0.004151427187025547, 0.020848531275987625, 0.008705598302185535,
                0.022342799231410027, 0.015539039857685566, 0.039693936705589294, 0.08935532718896866,
                0.04022403433918953, 0.1322801560163498,
            ),
            note="The exercise says that Xavier suits sigmoid, and then runs it on the LeakyReLU network.",
        ),
        Variant(
            name="sigmoid-xavier", title="sigmoid, Xavier normal",
            network=replace(_FIVE, initialization="xavier_normal"), data=_NORMAL,
            note="What the exercise's text describes; it was not run there.",
        ),
        Variant(
            name="leaky-he", title="LeakyReLU, He normal",
            network=replace(_FIVE, activation="leaky_relu", initialization="kaiming_normal"), data=_NORMAL,
            note="The pairing that He initialisation is meant for; it was not run there.",
        ),
    ),
    loss="mse",
    statistic="l2_norm",
    printed="all",
    questions=(
        _WHY,
        Question(key="pattern", text="What is the pattern, and where is vanishing evident?"),
        Question(key="why_sigmoid", text="Why does sigmoid cause it?"),
        Question(key="what_relu_changes", text="What changes with ReLU or LeakyReLU?"),
        Question(key="what_init_changes", text="What changes with Xavier and He initialisation?"),
    ),
    extras=("rules", "gains"),
    notes=("Weights and biases are different populations: drawn as one line in registration order they zigzag.",),
)  # fmt: skip

CLASSICS: dict[str, Study] = {
    s.name: s for s in (DEEP_SIGMOID, SHORTCUT, ACTIVATION_AND_INIT, RAW_WEIGHTS, INIT_STRATEGIES)
}


def study(name: str) -> Study:
    """A study by its name.

    Args:
        name: one of :data:`CLASSICS`.

    Returns:
        Its description.

    Raises:
        StudyError: there is no such study; near names are suggested.
    """
    found = CLASSICS.get(name)
    if found is None:
        near = difflib.get_close_matches(name, CLASSICS, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(CLASSICS)}"
        raise StudyError(f"unknown study {name!r}; {hint}")
    return found
