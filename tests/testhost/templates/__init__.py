"""The templates of workflows/, written as compact Python: their list here, one file a method beside it.

    PYTHONPATH=tests python -m testhost.templates        writes workflows/*.json through a running ComfyUI's node list
    PYTHONPATH=tests python -m testhost.pictures thumbnails      writes workflows/*.jpg from the templates' own results
"""
from __future__ import annotations

from collections.abc import Mapping

from . import customize, furrygan, guide, h_space, harivo, latent_basis, metrics, video

# Each chapter begins at a number of tens: a method, from the first thing to try to the last, its training at the end.
# What a person sees, in file names and as titles in the page, is NUMBER_FUNCTION. Numbers that were given stay.
CHAPTERS = {
    "Video": {1: video.text_to_image, 2: video.text_to_video, 3: video.text_to_video_style_lora,
              4: video.animatediff_own_checkpoint, 5: video.controlnet_frames, 6: video.long_clip_context_windows,
              8: video.train_motion_module},
    "HARIVO": {10: harivo.harivo_text_to_video, 11: harivo.mitigating_gradient, 12: harivo.animatediff_smooth,
               13: harivo.harivo_controlnet, 15: harivo.train_harivo},
    "Guide model": {20: guide.guidance_in_one_pass, 21: guide.guide_report, 22: guide.eight_steps,
                    23: guide.negative_in_one_pass, 24: guide.guide_with_motion, 28: guide.train_guide_model},
    "Customize-A-Video": {30: customize.motion_from_a_clip, 31: customize.absorb_a_look, 32: customize.motion_loras,
                          33: customize.two_motions, 34: customize.camera_lora, 35: customize.edit_from_the_clip,
                          36: customize.two_looks},
    "h-space": {40: h_space.h_space_content_and_style, 41: h_space.h_space_masked, 42: h_space.h_space_grid,
                43: h_space.h_space_clip, 44: h_space.h_space_any_sampler},
    "Latent basis": {50: latent_basis.latent_basis_directions, 51: latent_basis.latent_basis_transport,
                     52: latent_basis.latent_basis_prompt_slider},
    "Metrics": {60: metrics.attribute_report, 61: metrics.lora_drift, 62: metrics.clip_attributes,
                63: metrics.two_folders},
    "FurryGAN": {70: furrygan.cut_outs, 71: furrygan.walking_loop, 72: furrygan.image_to_alpha,
                 73: furrygan.foreground_over_picture, 74: furrygan.foreground_sliders, 75: furrygan.segmentation_pairs,
                 78: furrygan.train_furrygan},
}
REPORTS = {         # the output of each node that is a report in words, or the path of a file that was written
    "FrozenApplyMotionLoRA": 1, "FrozenAttributeReport": 1, "FrozenAttributes": 1, "FrozenEditPurity": 1, "FrozenLoadRuler": 1,
    "FrozenSaveRuler": 0, "FrozenScoreImages": 1, "FrozenBasisReport": 1, "FrozenCalibrateTimesteps": 3, "FrozenClipDataset": 1,
    "FrozenClipDoctor": 1, "FrozenClipReport": 1, "FrozenConvertLoRA": 0, "FrozenLoadMotionLoRA": 1,
    "FrozenSaveMotionLoRA": 0, "FrozenTrainAbsorber": 3, "FrozenTrainMotionLoRA": 3,
    "FrozenComputeLatentBasis": 2, "FrozenEditAlongBasis": 1, "FrozenGuideReport": 1, "FrozenImageSet": 1, "FrozenInvertDDIM": 4,
    "FrozenForegroundFromImage": 6, "FrozenGenerateForeground": 6, "FrozenLoadFurryGAN": 1, "FrozenSaveFurryGAN": 0,
    "FrozenSegmentationPairs": 0, "FrozenTrainFurryGAN": 3, "FrozenLoadGuideModel": 1, "FrozenLoadMotionModule": 1, "FrozenPromptDirection": 1, "FrozenSaveBasis": 0,
    "FrozenSaveGuideModel": 0, "FrozenSaveHTrace": 0, "FrozenSaveMotionModule": 0, "FrozenTransportBasis": 2}
LOADERS = {"FrozenLoadFurryGAN": "furrygan_file", "FrozenLoadGuideModel": "guide_file",
           "FrozenLoadMotionModule": "motion_file"}        # what they load
TEMPLATES = {f"{number:02d}_{make.__name__}": make for chapter in CHAPTERS.values() for number, make in chapter.items()}


def named(ending: str) -> str:
    """The file name, without .json, of the template whose name ends so. Raises ValueError if it is not one."""
    found = [name for name in TEMPLATES if name == ending or name.partition("_")[2] == ending]
    if len(found) != 1:
        raise ValueError(f"no template {ending!r}; there are: {', '.join(TEMPLATES)}")
    return found[0]


def reports(graph: Mapping[str, dict]) -> tuple[set[str], set[str]]:
    """The kinds of node of a graph whose report a person is meant to read, and those that have one shown as text.

    What a file is matters where it is the user's own.
    """
    wanted = {node["class_type"] for node in graph.values()} & REPORTS.keys()
    for kind, file in LOADERS.items():
        if all(node["inputs"][file].startswith("frozen-diffusion/") for node in graph.values()
               if node["class_type"] == kind):
            wanted.discard(kind)
    links = [node["inputs"]["source"] for node in graph.values() if node["class_type"] == "PreviewAny"]
    shown = {graph[key]["class_type"] for key, slot in links if REPORTS.get(graph[key]["class_type"]) == slot}
    return wanted, shown
