"""Tests that need the host. It is booted before they are collected, so they may import comfy at the top."""
from frozen_diffusion.modules.host.boot import boot_comfyui

boot_comfyui()
