"""Callbacks that write, while others train, what `python run.py analyse curves.jsonl` reads.

measure(model) -> {quantity: number}, such as {"accuracy": 0.5, "rankme": 12.0}.  The functions of
measures.py leave the model as it was.
"""
import json


def append(path, run, level, step, numbers):
    with open(path, "a") as file:
        for quantity, value in numbers.items():
            row = {"run": run, "level": level, "step": step, "quantity": quantity, "value": value}
            file.write(json.dumps(row) + "\n")


def for_trainer(path, measure, run="mine", level="all"):
    """transformers.Trainer(..., callbacks=[for_trainer("curves.jsonl", measure)])"""
    import transformers

    class Curves(transformers.TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, **others):
            append(path, run, level, state.global_step, measure(model))
    return Curves()


def for_lightning(path, measure, run="mine", level="all"):
    """lightning.Trainer(..., callbacks=[for_lightning("curves.jsonl", measure)])"""
    import lightning

    class Curves(lightning.Callback):
        def on_validation_end(self, trainer, module):
            if not trainer.sanity_checking:
                append(path, run, level, trainer.global_step, measure(module))
    return Curves()
