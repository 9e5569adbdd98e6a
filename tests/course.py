"""What belongs to this course: titles, times, questions with their rubrics, variants.

Each table is the one place for what grows.  A new exercise is a function with its mark, its tests
in test_exercises.py, and a row of EFFORT; a second solution in second_solutions.py shows that its
docstring says enough.  COURSE.md is the instructor's page.
"""
from typing import NamedTuple

TITLES = {1: "Tasks and causal masking",
          2: "Ranks and power iteration",
          3: "SGLD, the local learning coefficient, and an intervention",
          4: "Emergence, nulls and precursors"}

EFFORT = {                            # exercise: (minutes, difficulty)
    "tasks.answer_targets": (10, "easy"),
    "tasks.answer_distribution": (25, "medium"),
    "models.attention": (25, "medium"),
    "models.resample_answers": (25, "hard"),
    "models.attention_mask": (15, "medium"),
    "workbook.affine": (15, "easy"),
    "measures.rankme": (20, "easy"),
    "measures.effective_rank": (10, "easy"),
    "measures.gradient_gram": (40, "hard"),
    "measures.power_iteration": (25, "medium"),
    "workbook.renyi_rank": (15, "easy"),
    "measures.sgld_step": (15, "easy"),
    "measures.llc_draws": (10, "easy"),
    "measures.split_r_hat": (15, "medium"),
    "measures.effective_samples": (45, "hard"),
    "workbook.stiffness": (15, "easy"),
    "workbook.length_penalty": (10, "medium"),
    "emergence.emergence_index": (20, "medium"),
    "emergence.recovery": (20, "medium"),
    "emergence.holm": (15, "medium"),
    "emergence.exchanges": (20, "medium"),
    "emergence.precursor_counts": (30, "hard"),
    "emergence.p_value": (5, "easy"),
    "workbook.exchange_test": (20, "medium"),
    "workbook.log_score": (20, "medium"),
}


# --------------------------------------------------------------------------------------------------
# What a handout has in the place of functions that would tell the solution; "": nothing

INSTEAD = {
    "measures.rankme": {"measures.rankme_many": '''
def rankme_many(features, *eps):
    """RankMe of M feature matrices, (M, N, D), one after another: (M,) float64."""
    return torch.tensor([rankme(x, *eps) for x in features], dtype=torch.float64)
'''},
    "measures.gradient_gram": {"measures.gradient_blocks": ""},
    "measures.sgld_step": {"measures.Sampler.step": '''
    def step(self, gradient):
        """sgld_step with momentum p (BAOAB: Leimkuhler & Matthews 2013).  c = 0: mean of two.
            p <- p - h drift                        w <- w + h/2 p        h^2 = lr
            p <- c p + sqrt(1 - c^2) noise          w <- w + h/2 p        c = momentum"""
        h, c = math.sqrt(self.lr), self.momentum
        moved, still = self.w.clone(), torch.zeros_like(self.w)
        sgld_step(moved, self.w0, gradient, still, self.lr, self.nbeta, self.localization)
        self.p.add_(moved.sub_(self.w), alpha=2 / h)            # without noise: -lr/2 drift
        self.w.add_(self.p, alpha=h / 2)
        self.p.mul_(c).add_(self.noise(), alpha=math.sqrt(1 - c * c))
        self.w.add_(self.p, alpha=h / 2)
'''},
    "workbook.exchange_test": {"emergence.exchanged": '''
def exchanged(table, permutations):
    """What a table (..., T, T) adds up to under each exchange: (..., M)."""
    picked = np.eye(table.shape[-1])[permutations]                          # (M, T, T), 0 or 1
    return np.tensordot(table, picked, axes=([-2, -1], [1, 2]))
'''},
    "measures.power_iteration": {"measures.lanczos": '''
def lanczos(matvec, start, tol=1e-2, max_iters=100, room=None):
    """Both ends of the spectrum by power_iteration: the second time of H - lambda I."""
    top = power_iteration(matvec, start.reshape(-1, start.shape[-1]).sum(0), tol, max_iters)

    def shifted(v):
        return matvec(v) - top.eigenvalue * v
    again = torch.randn(start.shape[-1], generator=_generator(None)).to(start)
    end = power_iteration(shifted, again, tol, max_iters)
    ends = [(top.eigenvalue, top.eigenvector, top.residual),
            (top.eigenvalue + end.eigenvalue, end.eigenvector, end.residual)]
    if top.eigenvalue > 0:
        ends.reverse()
    (smallest, low, residual_smallest), (largest, high, residual_largest) = ends
    return HessianTop(top.eigenvalue, top.eigenvector, top.iterations + end.iterations,
                      top.residual, top.converged, smallest, largest, residual_smallest,
                      residual_largest, vectors=torch.stack([low, high]))
''', "measures.extended": "", "measures.ritz": "", "measures.ritz_pair": "",
            "measures.surely_larger": ""},
}

# Of functions that stay in a handout and come near an exercise: what the sheet says of them.
NEIGHBOURS = {
    "tasks.answer_distribution": "`all_operands` and `can_be_listed` may be used; "
                                 "`answer_frequencies` and `number_operands`, which count tokens "
                                 "and operands, may be read.",
    "measures.rankme": "`pythia.rankme_squared_centred` is another measure, of squared and centred "
                       "features. It may be read.",
    "measures.gradient_gram": "`_prepare`, `per_example_gradients` and "
                              "`per_example_gradients_vmap` may be used.",
    "workbook.stiffness": "`measures.llc` has a stiffness from an estimate of the curvature, and "
                          "another right lr. It may be read.",
    "emergence.precursor_counts": "`claims.rate_beside_chance` counts each task's own onsets "
                                  "alone. It may be read.",
    "workbook.exchange_test": "`emergence.exchanges` and `emergence.p_value` may be used; "
                              "`claims.rate_beside_chance`, which has these numbers of rates, may "
                              "be read.",
}


# --------------------------------------------------------------------------------------------------
# Variants: constants that stand in docstring, code and tests, and change in all three at once

class Constant(NamedTuple):
    exercise: str
    values: tuple                     # the first: as it is in this tree; each: for {0}, {1} ...
    source: tuple                     # where it stands in the function, docstring included
    tests: tuple                      # where it stands in the tests
    beside: tuple = ()                # (function, where it stands there), in the same module


VARIANTS = [
    Constant("workbook.affine", (("3", "1"), ("2", "6"), ("4", "3"), ("6", "0")),
             ("{0} * 2 + 5 * 6 mod 7, which is {1}", "({0} a + 5 b)", "[[6]], [[{1}]])",
              "({0} * a + 5 * b)"),
             ("FACTOR = {0}",)),
    Constant("measures.rankme", (("1e-7", "nothing known"), ("1e-5", "its eps is 1e-7"),
                                 ("1e-6", "its eps is 1e-7"), ("1e-8", "its eps is 1e-7")),
             ("eps: float = {0}", "paper: {1}."),
             ("EPS = {0}",),
             (("rankme_many", ("eps={0}",)), ("rankme_centred", ("eps: float = {0}",)))),
    Constant("measures.effective_rank", (("1e-6",), ("1e-4",), ("1e-3",), ("1e-5",)),
             ("-{0} of the largest", "-{0} * "),
             ("BELOW = {0}",)),
    Constant("workbook.renyi_rank", (("3", "2"), ("4", "3"), ("5", "4"), ("6", "5")),
             ("p_i^{0})^(-1/{1})", "of order {0}, 1 / (1 - order) = -1/{1}.",
              "p ** {0}).sum() ** (1 / (1 - {0}))"),
             ("ORDER = {0}",)),
    Constant("workbook.stiffness", (("0.25", "0.01"), ("0.5", "0.02"), ("0.2", "0.008"),
                                    ("0.4", "0.016")),
             ("stiffness is {0} or less", "whose stiffness is {0}.", "(0.25, {1})",
              "{0} / sharpest"),
             ("RIGHT = {0}",)),
    Constant("workbook.length_penalty", (("2", "1/4", "1", "0.625"),
                                         ("4", "9/16", "0", "0.28125"),
                                         ("8", "49/64", "1/4", "0.5078125")),
             ("/ ({0} D) - 1", "mean square is {0} costs", "# {1} and {2}", "    {3}\n",
              "mean(1) / {0} - 1"),
             ("LENGTH = {0}",)),
    Constant("emergence.emergence_index", (("3",), ("2",), ("4",), ("5",)),
             ("{0} sqrt(chance", "{0} * np.sqrt(chance"),
             ("ERRORS = {0}",)),
    Constant("workbook.log_score", (("0.01", "0.99"), ("0.02", "0.98"), ("0.05", "0.95")),
             ("into [{0}, {1}]", "than log {0}.", "q[watched], {0}, {1})", "{0}), {1})"),
             ("LEAST = {0}",)),
]


# --------------------------------------------------------------------------------------------------
# The sheet, and the written questions

SHEET = """# Problem sheet

{count} functions of this tree are blank: each raises NotImplementedError. Write them; the \
docstring says what a function must do, and nothing else is asked of it. Any correct way counts. \
An error is asked for by its type, never by its wording. Only the function itself is taken when \
you are graded: what it needs, imports and helpers included, belongs inside its body (what the \
file already has, you may use, such as `digits` of tasks.py; what does the same job, or calls the \
function, you may not, such as `rankme_many` for rankme: each exercise says what that is). Every \
test has its own points. Check yourself with

```
python -m pytest -m exercise
```

{points} points for the functions, {written} for the questions; the functions take about {hours}. \
Hand in this folder, a zip of it, or the files that you changed, under their names. Keep their \
first line (`{heading}`): it says which handout this is.

{left_out}"""

LEFT_OUT = ("This folder is a handout. Of what README.md names, results/ and most of tests/ are "
            "left out, and so are the commands that need them (bench, handout, grade); some "
            "functions are slower than the README says.")


class Question(NamedTuple):
    points: int
    text: str
    rubric: tuple                     # (points, what earns them); they add up to `points`


QUESTIONS = {                         # on figures that the reader's own commands have made
    1: [
        Question(5, "Run `python run.py tasks modadd` and `python run.py tasks compare`. Why is "
                    "chance 1/7 for modadd-1, but 1/3 for every level of compare? What would "
                    "chance be for compare-1 if both numbers were drawn independently?",
                 ((2, "the best blind answer: 7 residues, equally often; three signs, drawn "
                      "equally often"),
                  (2, "drawn independently, 10 of 100 pairs are equal, so `<` and `>` have 45% "
                      "each: chance .45"),
                  (1, "and it would grow with the level, towards 1/2"))),
        Question(5, "Take the mask of attention away (return zeros from `attention_mask`) and "
                    "train: `python run.py sweep --task copy --sizes nano --seeds 1 --measures "
                    "none`. What does the accuracy do, what does the loss do, and why is it no "
                    "use?",
                 ((2, "the loss falls at once: every place sees the token it is asked for"),
                  (2, "the accuracy, where the answer is written token by token, does not follow"),
                  (1, "says that what is tested is not what was trained"))),
    ],
    2: [
        Question(5, "Run `python run.py sweep --task modadd --sizes nano --seeds 1`. In your "
                    "figures/curves.png, read off floor, onset and emergence of each level. The "
                    "floor of mod 7 is out of 49 distinct inputs: is a floor of 1.3 there as deep "
                    "a collapse as for mod 97?",
                 ((2, "nine numbers, read off with their snapshots' distance"),
                  (2, "a rank has a ceiling, min(N, D): share of the ceiling, or both numbers"),
                  (1, "concludes from the own numbers"))),
        Question(5, "In figures/layers.png, which layer collapses first, and which recovers "
                    "first? Say what you would have to see in other seeds to believe it.",
                 ((2, "names layers and steps from the own figure"),
                  (2, "one run is one run: how many seeds of how many must agree, as a number"),
                  (1, "says what would count against it"))),
        Question(5, "Why does power iteration need many steps where two eigenvalues are nearly "
                    "alike in size, and what does its residual tell you that the Rayleigh "
                    "quotient does not?",
                 ((2, "the other direction shrinks by |l2 / l1| a step"),
                  (2, "v . Hv lies between eigenvalues and can stand still; the residual is 0 only "
                      "at an eigenvector"),
                  (1, "opposite signs: it never ends, and the residual says so"))),
    ],
    3: [
        Question(5, "Run `python run.py measure runs/modadd/nano-s0 --measure llc --set "
                    "llc_localization=G` on your own run, with G 1e3, 1e4, 3e4 and 1e5. Does the "
                    "order of the levels stay the same? Which value would you not trust, and which "
                    "of the printed diagnostics says so?",
                 ((2, "a table of the four runs, value and error of each level"),
                  (2, "says whether the order changes by more than the errors"),
                  (1, "names a diagnostic: the lost share, noise alone, r_hat, or the warnings"))),
        Question(5, "Measure the LLC at step 0, at your onset and at the last step (`--step`). "
                    "One of them may be negative. What does that say about w0?",
                 ((2, "three values with their errors"),
                  (3, "w0 is no minimum: chains found lower loss near it, and the number is no "
                      "learning coefficient"))),
    ],
    4: [
        Question(5, "Run `python run.py sweep --task all --sizes nano --seeds 2 --measures rankme` "
                    "(some minutes): the questions of this set are about it. In its events.csv, "
                    "count how often the onset came before emergence. Then exchange the onsets of "
                    "two tasks by hand and count again. What does `chance` in the table of claims "
                    "say that the count alone does not?",
                 ((2, "both counts, with the two tasks named"),
                  (2, "what is early for every task is before everything: exchanging shows it"),
                  (1, "chance is the mean over exchanges of whole tasks, not 50%"))),
        Question(5, "Name two fields of claims.Specification that change your verdict on C4 when "
                    "you change them, and one that does not. Which of the values would you have "
                    "chosen before seeing the data, and why?",
                 ((3, "three fields, with the verdicts under both values"),
                  (2, "a reason that does not use the result"))),
        Question(5, "A sham task can never emerge. What does an onset on a sham say about RankMe "
                    "as a precursor?",
                 ((3, "the onset needs no capability to follow: RankMe moves with training "
                      "itself"),
                  (2, "so an onset counts only as far as it differs from the shams'"))),
    ],
}


def rubrics():
    """The section of COURSE.md that says what earns the points of the written questions."""
    lines = []
    for number, questions in QUESTIONS.items():
        for letter, question in zip("abcdefgh", questions):
            lines.append(f"- **{number}.{letter}** ({question.points} points)")
            lines += [f"  - {points}: {what}" for points, what in question.rubric]
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------------------------------
# Gradescope's container

SETUP = """#!/usr/bin/env bash
set -e
apt-get update && apt-get install -y python3 python3-pip
# torch's build for CPUs is enough, and much smaller
python3 -m pip install --break-system-packages "torch>=2.6,<2.14" numpy matplotlib typer rich \\
    filelock jinja2 pytest
"""

RUN_AUTOGRADER = """#!/usr/bin/env bash
cd /autograder/source
python3 run.py grade /autograder/submission --results /autograder/results/results.json {options}
"""
