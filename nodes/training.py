"""Training motion modules: clips to train on, and the training."""
from __future__ import annotations

from comfy_api.latest import io

from ..modules.demo.paths import PATH_CLIPS
from ..modules.host.schema_extras import for_newer_pages
from ..modules.motion.recipe import HEADS, NEGATIVES, MotionRecipe
from .training_options import LossMap, options_input, run_inputs

ClipDataset = io.Custom("FROZEN_CLIP_DATASET")
MotionModule = io.Custom("FROZEN_MOTION_MODULE")
FOLDER, SPRITES = "folder", "sprite world"


class FrozenClipDataset(io.ComfyNode):
    """Clips out of a folder of videos and image sequences, or of sprite world."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FrozenClipDataset",
            display_name="Clip Dataset",
            category="frozen/motion",
            description="Finds the clips to train a motion module on. Tells which files it cannot use.",
            inputs=[
                io.Combo.Input("source", options=[FOLDER, SPRITES, *PATH_CLIPS], default=FOLDER,
                               tooltip="Videos of your own in a folder, or the embedded sprite world; or a video "
                                       "of a motion that no motion module here knows, which is then in the folder "
                                       "input/frozen_diffusion."),
                io.String.Input("folder", default="",
                                tooltip="Folder with video files, or with subfolders of numbered pictures: "
                                        "an absolute path, or one inside ComfyUI's input folder. Captions: "
                                        "NAME.txt beside each file, or one .csv with columns file, caption."),
                io.Int.Input("frames", default=16, min=2, max=128, tooltip="Frames of a clip."),
                io.Float.Input("fps", default=8.0, min=1.0, max=60.0, step=0.5,
                               tooltip="Frames a second of a clip; sources of any rate are resampled to it."),
                io.Int.Input("width", default=256, min=32, max=2048, step=8,
                             tooltip="Pixels. Frames are scaled to cover the size, then cropped at the "
                                     "centre. Sprite world is always 128."),
                io.Int.Input("height", default=256, min=32, max=2048, step=8,
                             tooltip="Pixels. Sprite world is always 128."),
                io.Float.Input("stride", default=0.0, min=0.0, max=3600.0, step=0.1,
                               tooltip="Seconds between the starts of two clips of the same scene; 0 = no "
                                       "overlap."),
                io.Int.Input("max_clips", default=0, min=0, max=1000000,
                             tooltip="At most this many clips, taken evenly from all; 0 = all (of sprite "
                                     "world: 512)."),
                io.Boolean.Input("mirror", default=False,
                                 tooltip="Mirror half of the clips, each as a whole. Leave off if captions "
                                         "say left or right."),
                io.Boolean.Input("keep_still", default=False,
                                 tooltip="Keep clips in which nothing moves."),
                io.Int.Input("seed", default=0, min=0, max=2**32 - 1, control_after_generate=False,
                             tooltip="Which clips of sprite world; a folder does not depend on it."),
            ],
            outputs=[
                ClipDataset.Output(display_name="clips", tooltip="For Train Motion Module."),
                io.String.Output(display_name="report",
                                 tooltip="What was found, split at cuts, slowed down or left out, and why."),
                io.Image.Output(display_name="preview", tooltip="Up to four clips, one a row."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, source: str, folder: str, **settings) -> str:
        from ..modules.data.clip_folder import folder_state
        from ..modules.host.clip_dataset import input_folder
        return folder_state(input_folder(folder)) if source == FOLDER else ""

    @classmethod
    def execute(cls, source: str, folder: str, seed: int, **settings) -> io.NodeOutput:
        from ..modules.data.clips import ClipSettings
        from ..modules.demo.clips import SpriteClips
        from ..modules.host.clip_dataset import clips_of_folder, preview_rows
        from ..modules.host.path_videos import path_clip_folder
        from ..modules.host.progress import show_text
        settings = ClipSettings(**settings)
        if source in PATH_CLIPS:
            folder = str(path_clip_folder(source))
        clips = (SpriteClips(settings.max_clips or 512, settings, seed) if source == SPRITES
                 else clips_of_folder(folder, settings))
        text = clips.report()
        return io.NodeOutput(clips, text, preview_rows(clips), ui=show_text(text, cls.hidden.unique_id))


@for_newer_pages(folded=(
    "accumulate", "warm_start_rate", "caption_dropout", "ema", "precision",
    "gradient_checkpointing", "checkpoint_every", "snr_limit", "trs", "trs_from", "dc",
    "lora_rank", "noise_shift", "scattered", "pure_noise", "optimizer", "dc_negatives", "dc_head"))
class FrozenTrainMotionModule(io.ComfyNode):
    """Trains the temporal layers on clips; the image model stays frozen."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        recipe = MotionRecipe()
        return io.Schema(
            node_id="FrozenTrainMotionModule",
            display_name="Train Motion Module",
            category="frozen/motion",
            description="Trains a motion module on clips, from scratch or from any motion file. The MODEL is "
                        "only read. A cancelled training goes on where it was when queued again.",
            inputs=[
                io.Model.Input("model", tooltip="SD1.5 or SDXL image model, with LoRAs or not. Only read."),
                io.Vae.Input("vae", tooltip="Encodes the clips, once; they are kept on disk."),
                io.Clip.Input("clip", tooltip="Encodes the captions, once; they are kept on disk."),
                ClipDataset.Input("clips", tooltip="From Clip Dataset."),
                MotionModule.Input("motion_module", optional=True,
                                   tooltip="Start from this module (warm start). Without it: from scratch."),
                io.Int.Input("steps", default=recipe.steps, min=2, max=1000000,
                             tooltip="Training steps. 5000 to 50000 for a module of general use."),
                io.Float.Input("learning_rate", default=recipe.learning_rate, min=1e-7, max=1.0, step=1e-6,
                               tooltip="For new weights; constant."),
                io.Int.Input("batch_size", default=recipe.batch_size, min=1, max=64,
                             tooltip="Clips computed at once. More need more memory."),
                io.Int.Input("accumulate", default=recipe.accumulate, min=1, max=256,
                             tooltip="Batches that are added up to one step: the effective batch is "
                                     "batch_size x accumulate; 8 and more train steadily."),
                io.Int.Input("frames", default=recipe.frames, min=0, max=128,
                             tooltip="Frames at once: a random run of each clip; 0 = the whole clip."),
                io.Boolean.Input("temporal_convolution", default=recipe.temporal_convolution,
                                 tooltip="Add a convolution along time before each temporal attention "
                                         "(HARIVO). Other packs leave it out when they load the file."),
                io.Combo.Input("beta_schedule", default=recipe.beta_schedule,
                               options=["auto", "keep", "sqrt_linear", "linear", "linear (AnimateDiff-SDXL)"],
                               tooltip="Noise levels, by the host's names. auto: those of motion_module, "
                                       "else sqrt_linear (AnimateDiff's linear betas). keep: the MODEL's."),
                io.Float.Input("warm_start_rate", default=recipe.warm_start_rate, min=0.0, max=1.0, step=0.01,
                               tooltip="Factor on the learning rate for the weights of motion_module."),
                io.Float.Input("caption_dropout", default=recipe.caption_dropout, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of clips trained without caption, which cfg needs."),
                io.Float.Input("ema", default=recipe.ema, min=0.0, max=0.9999, step=0.0001, round=0.0001,
                               tooltip="Decay of the moving average of the weights; the average comes out."),
                io.Combo.Input("precision", options=["fp32", "bf16"], default=recipe.precision,
                               tooltip="bf16 halves the memory of the frozen model and is faster on a GPU."),
                io.Boolean.Input("gradient_checkpointing", default=recipe.gradient_checkpointing,
                                 tooltip="Much less memory for about a third more time."),
                io.Int.Input("sample_every", default=100, min=0, max=100000,
                             tooltip="Show a sample clip every this many steps; 0 = only at the end."),
                io.String.Input("sample_prompt", default=recipe.sample_prompt, multiline=True,
                                tooltip="Text of the sample clip; empty = the caption of the first clip."),
                io.Int.Input("checkpoint_every", default=recipe.checkpoint_every, min=1, max=100000,
                             tooltip="Steps between checkpoints; the end and a cancel write one too."),
                *run_inputs("motion", "motion_training", recipe.seed, "First weights, order of the clips, noise"),
                io.Float.Input("snr_limit", default=recipe.snr_limit, min=0.0, max=100.0, step=0.5, optional=True,
                               tooltip="0: all noise levels count alike (AnimateDiff). 5: low noise counts less "
                                       "and high noise, where motion is decided, more (min-SNR)."),
                io.Int.Input("mapping_width", default=recipe.mapping_width, min=0, max=512, step=8, optional=True,
                             tooltip="HARIVO's mapping network with this many inner channels, e.g. 128. 0: none."),
                io.Int.Input("frame_tokens", default=recipe.frame_tokens, min=0, max=32, optional=True,
                             tooltip="HARIVO's tokens for every frame, e.g. 4. 0: none."),
                io.Float.Input("trs", default=recipe.trs, min=0.0, max=1000.0, step=0.001, round=0.0001, optional=True,
                               tooltip="Weight of HARIVO's TRS loss (neighbouring frames attend alike), e.g. 0.05, or "
                                       "more where its share of the gradient stays near 0 %. 0: off. Too high freezes "
                                       "the clip."),
                io.Int.Input("trs_from", default=recipe.trs_from, min=0, max=1000000, optional=True,
                             tooltip="Steps before the TRS loss begins."),
                io.Float.Input("dc", default=recipe.dc, min=0.0, max=10.0, step=0.001, round=0.0001, optional=True,
                               tooltip="Weight of HARIVO's DC loss (frames of a clip mean the same, other clips "
                                       "something else), e.g. 0.01. 0: off. It compares the clips of a batch, so "
                                       "batch_size must be 2 or more."),
                io.Int.Input("lora_rank", default=recipe.lora_rank, min=0, max=256, optional=True,
                             tooltip="Train only a change of this rank on the temporal attentions of motion_module; "
                                     "HARIVO's parts are trained whole. 0: all weights."),
                io.Float.Input("noise_shift", default=recipe.noise_shift, min=0.1, max=20.0, step=0.1, optional=True,
                               tooltip="1: all noise levels are drawn alike (AnimateDiff). 3: high noise, where motion "
                                       "is decided, is drawn more often."),
                io.Boolean.Input("scattered", default=recipe.scattered, optional=True,
                                 tooltip="With frames above 0: draw them from all over the clip, not as a run. Two "
                                         "scattered frames of 16 clips cost what 16 frames of two cost, and teach "
                                         "the words for motion much faster."),
                io.Float.Input("pure_noise", default=recipe.pure_noise, min=0.0, max=1.0, step=0.01, optional=True,
                               tooltip="Share of clips given as noise alone, e.g. 0.3: sampling starts there, and only "
                                       "the caption can tell the motion. 0: none (AnimateDiff)."),
                io.Combo.Input("optimizer", options=["adamw", "muon"], default=recipe.optimizer, optional=True,
                               tooltip="muon makes more of few steps; learning rates are those of adamw. It wants "
                                       "torch 2.9 or newer."),
                io.Combo.Input("dc_negatives", options=list(NEGATIVES), default=recipe.dc_negatives, optional=True,
                               tooltip="What the DC loss keeps a clip apart from. batch: the other clips of its batch. "
                                       "queue: clips of earlier steps, as in the paper; it needs 64 different videos, "
                                       "and clips became more alike with it, not less."),
                io.Combo.Input("dc_head", options=list(HEADS), default=recipe.dc_head, optional=True,
                               tooltip="mlp: the DC loss sees the bottleneck through a projection head, which is "
                                       "trained with it and then dropped, as in the paper. none: it sees the "
                                       "bottleneck itself, which is stronger."),
                options_input(),
            ],
            outputs=[
                MotionModule.Output(display_name="motion_module",
                                    tooltip="The averaged weights, for Apply and Save Motion Module."),
                LossMap.Output(display_name="loss_map", tooltip="For the node Plot Loss Graph."),
                io.Image.Output(display_name="sample", tooltip="A clip made at the end, as one frame sheet."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, vae, clip, clips, checkpoint: str, resume: bool, motion_module=None,
                options=None, **recipe) -> io.NodeOutput:
        from ..modules.host.files import checkpoint_path
        from ..modules.host.motion.train import MotionSubject
        from ..modules.host.progress import SHEET_COLUMNS
        from ..modules.host.train_node import train_in_node
        from ..modules.pictures.frame_sheet import frame_sheet
        from ..modules.training.driver import Driver
        recipe = MotionRecipe(**recipe) if options is None else options.over(MotionRecipe(**recipe))
        subject = MotionSubject(model, vae, clip, clips, recipe, motion_module)
        training = Driver(subject, checkpoint_path(checkpoint, "motion_training"), resume)
        frames = train_in_node(training, cls.hidden.unique_id)
        return io.NodeOutput(training.result(), {"loss": training.losses}, frame_sheet(frames, SHEET_COLUMNS))


NODES = [FrozenClipDataset, FrozenTrainMotionModule]
