"""Expert settings that every trainer takes by a socket."""
from __future__ import annotations

from comfy_api.latest import io

from ..modules.training.options import TrainingOptions

Options = io.Custom("FROZEN_TRAINING_OPTIONS")
LossMap = io.Custom("LOSS_MAP")


def run_inputs(name: str, folder: str, seed: int, drawn: str) -> list:
    """The inputs of every trainer that say where its checkpoint (by default `name`) is kept and what it draws."""
    return [
        io.String.Input("checkpoint", default=name,
                        tooltip=f"Name of the checkpoint, in {folder} in the output folder."),
        io.Boolean.Input("resume", default=True,
                         tooltip="Go on from the checkpoint of that name if there is one. Off: start afresh; the old "
                                 "one is kept as NAME.previous."),
        io.Int.Input("seed", default=seed, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False,
                     tooltip=f"{drawn}: same seed, same training."),
    ]


def options_input():
    """The socket of FrozenTrainingOptions."""
    return Options.Input("options", optional=True,
                         tooltip="Expert settings from Training Options. Inputs of the same name then follow it.")


class FrozenTrainingOptions(io.ComfyNode):
    """Optimizer, schedule, precision and the like, for any of the pack's trainers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        default = TrainingOptions()
        return io.Schema(
            node_id="FrozenTrainingOptions",
            display_name="Training Options",
            category="frozen/training",
            description="Expert settings for the trainers of this pack. Without it a trainer uses its own.",
            inputs=[
                io.Combo.Input("schedule", options=["constant", "cosine"], default=default.schedule,
                               tooltip="Of the learning rate. cosine: falls along half a cosine to 0 at the end."),
                io.Int.Input("warmup", default=default.warmup, min=0, max=100000,
                             tooltip="Steps in which the learning rate rises from 0."),
                io.Combo.Input("optimizer", options=["adamw", "muon", "muon-conv"], default=default.optimizer,
                               tooltip="muon makes more of few steps; it wants torch 2.9 or newer. muon-conv: for "
                                       "convolutions too, as guides have."),
                io.Float.Input("weight_decay", default=default.weight_decay, min=0.0, max=1.0, step=0.001, round=0.0001,
                               tooltip="Pull of the weights towards 0, times the learning rate, each step."),
                io.Float.Input("grad_clip", default=default.grad_clip, min=0.0, max=100.0, step=0.1,
                               tooltip="Largest norm of a step's gradient; larger ones are scaled down. 0: no limit."),
                io.Int.Input("accumulate", default=default.accumulate, min=1, max=256,
                             tooltip="Batches that are added up to one step: the effective batch is batch_size x "
                                     "accumulate."),
                io.Float.Input("ema", default=default.ema, min=0.0, max=0.9999, step=0.0001, round=0.0001,
                               tooltip="Decay of the moving average of the weights; the average comes out."),
                io.Combo.Input("precision", options=["fp32", "bf16"], default=default.precision,
                               tooltip="bf16 halves the memory of the frozen model and is faster on a GPU."),
                io.Boolean.Input("gradient_checkpointing", default=default.gradient_checkpointing,
                                 tooltip="Much less memory for about a third more time."),
                io.Int.Input("checkpoint_every", default=default.checkpoint_every, min=1, max=100000,
                             tooltip="Steps between checkpoints; the end and a cancel write one too."),
            ],
            outputs=[Options.Output(display_name="options", tooltip="For the options input of a trainer.")],
        )

    @classmethod
    def execute(cls, **settings) -> io.NodeOutput:
        return io.NodeOutput(TrainingOptions(**settings))


NODES = [FrozenTrainingOptions]
